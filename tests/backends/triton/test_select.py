"""The kernels under Triton's interpreter against the references, and lists against what they are made of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import lists, select
from srrc.backends.triton.kernels.activate import KNOWN
from srrc.backends.triton.kernels.lists import Kept

ROWS = st.integers(1, 8)
COUNTS = st.integers(1, 100)
DROPPED = st.sampled_from((-1.0, 0.0, 0.5, 99.0))


def equal(found: Kept, truth: Kept) -> None:
    assert torch.equal(found.units, truth.units)
    assert torch.equal(found.counts, truth.counts)
    assert torch.equal(found.rows, truth.rows)


def drawn(rows: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, count).to(dtype), torch.rand(count) + 0.5


@settings(max_examples=30)
@given(ROWS, COUNTS, DROPPED, st.sampled_from((torch.float32, torch.float16)), st.integers(0, 99))
def test_plain(rows: int, count: int, threshold: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, norm = drawn(rows, count, dtype)
    gate = torch.tensor([threshold, 0.0])
    found = select.select(x, norm, gate, block=32)
    equal(found, lists.reference(select.reference(x, norm), gate, 32))
    assert torch.equal(found.mask(), (x.abs().float() * norm > threshold).any(0))
    assert not found.arrived.any()
    emphasis = torch.rand(rows) + 0.5
    found = select.select(x, norm, gate, emphasis, block=32)
    equal(found, lists.reference(select.reference(x, norm, emphasis), gate, 32))


@settings(max_examples=30)
@given(ROWS, COUNTS, DROPPED, st.booleans(), st.integers(0, 99))
def test_after_a_norm(rows: int, count: int, threshold: float, weighted: bool, seed: int) -> None:
    torch.manual_seed(seed)
    stream, norm = drawn(rows, count, torch.float32)
    added, weight = torch.randn(rows, count), torch.randn(count) if weighted else None
    gate = torch.tensor([threshold, 0.0])
    total, x, found = select.select_norm(stream, added, weight, norm, gate, epsilon=1e-5, block=32)
    torch.testing.assert_close(total, stream + added, rtol=0, atol=0)
    torch.testing.assert_close(x, select.normalised(total, weight, 1e-5), rtol=1e-5, atol=1e-5)
    equal(found, lists.reference(select.reference(x, norm), gate, 32))


@settings(max_examples=40)
@given(
    ROWS,
    COUNTS,
    DROPPED,
    st.sampled_from((torch.float32, torch.float16)),
    st.booleans(),
    st.sampled_from(KNOWN),
    st.integers(0, 99),
)
def test_after_an_activation(
    rows: int, count: int, threshold: float, dtype: torch.dtype, gated: bool, activation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    both, _ = drawn(rows, 2 * count, dtype)
    inner, up = both.chunk(2, -1)
    up = up if gated else None
    norm, gate, emphasis = torch.rand(count) + 0.5, torch.tensor([threshold, 0.0]), torch.rand(rows) + 0.5
    x, found = select.select_act(inner, norm, gate, up, emphasis, activation=activation, block=32)
    torch.testing.assert_close(x, select.acted(inner, up, activation))
    equal(found, lists.reference(select.reference(x, norm, emphasis), gate, 32))


def test_nan_is_kept() -> None:
    x = torch.ones(2, 40)
    x[1, 7] = float("nan")
    found = select.select(x, torch.ones(40), torch.tensor([9.0, 0.0]), block=32)
    assert found.mask().nonzero().tolist() == [[7]]


@settings(max_examples=20)
@given(ROWS, COUNTS, st.sampled_from((0.0, 0.4, 0.6, 1.0)), st.integers(0, 99))
def test_the_guard(rows: int, count: int, least: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, norm = drawn(rows, count, torch.float32)
    gate = torch.tensor([0.7, least])
    found = select.select(x, norm, gate, block=32)
    failed = ((x.abs() * norm > 0.7).sum(1) < least * count).any()
    sizes = torch.tensor([min(32, count - start) for start in range(0, count, 32)], dtype=torch.int32)
    assert torch.equal(lists.guarded(found, gate), sizes if failed else found.counts)


@pytest.mark.parametrize(
    ("x", "norm"),
    [
        (torch.zeros(9, 4), torch.ones(4)),
        (torch.zeros(4, 8)[:, ::2], torch.ones(4)),
        (torch.zeros(1, 4), torch.ones(5)),
    ],
)
def test_what_does_not_fit(x: Tensor, norm: Tensor) -> None:
    with pytest.raises(ValueError, match="1 to 8 rows, each in one piece, and a norm for each"):
        select.select(x, norm, torch.zeros(2))
