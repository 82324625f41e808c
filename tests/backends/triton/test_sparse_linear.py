"""The kernel under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.sparse_linear import Config, reference, sparse_linear
from srrc.ops.gate import count, decide

DTYPES = (torch.float32, torch.float16)
CONFIGS = st.sampled_from((Config(16, 32, 1, 2), Config(16, 32, 1, 2, dot=False), Config(32, 64, 1, 2)))


def by_input(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(inputs, outputs).to(dtype).t()


def drawn(rows: int, inputs: int, kept: float, dtype: torch.dtype, block: int = 32) -> tuple[Tensor, Kept]:
    """Random rows, and lists of a random part of their channels."""
    score = (torch.rand(rows, inputs) < kept).float()
    return torch.randn(rows, inputs).to(dtype), lists.reference(score, torch.tensor([0.5, 0.0]), block)


def close(found: Tensor, truth: Tensor) -> None:
    exact = found.dtype == torch.float32
    torch.testing.assert_close(found, truth, rtol=1e-5 if exact else 2e-3, atol=1e-4 if exact else 2e-2)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=st.sampled_from(DTYPES),
    config=CONFIGS,
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int,
    inputs: int,
    outputs: int,
    kept: float,
    dtype: torch.dtype,
    config: Config,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, chosen = drawn(rows, inputs, kept, dtype)
    weight = by_input(outputs, inputs, dtype)
    added = torch.randn(outputs).to(dtype) if bias else None
    close(
        sparse_linear(x, chosen, weight, bias=added, config=config), reference(x, chosen, weight, bias=added)
    )


@settings(max_examples=15)
@given(rows=st.integers(1, 8), inputs=st.integers(1, 80), outputs=st.integers(1, 90), seed=st.integers(0, 99))
def test_weights_of_eight_bits(rows: int, inputs: int, outputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, chosen = drawn(rows, inputs, 0.5, torch.float32)
    weight = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8).t()
    scale = torch.rand(outputs)
    found = sparse_linear(x, chosen, weight, scale, config=Config(16, 32, 1, 2))
    torch.testing.assert_close(found, reference(x, chosen, weight, scale), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("least", [0.1, 0.9])
def test_where_the_guard_fails_everything_is_read(rows: int, least: float) -> None:
    torch.manual_seed(0)
    x, chosen = drawn(rows, 80, 0.5, torch.float32)
    weight = by_input(50, 80, torch.float32)
    found = sparse_linear(x, chosen, weight, gate=torch.tensor([0.5, least]), config=Config(16, 32, 1, 2))
    whole = x @ weight.t()
    close(found, whole if least == 0.9 else reference(x, chosen, weight))
    assert torch.allclose(found, whole, atol=1e-4) == (least == 0.9)


@pytest.mark.parametrize("dot", [True, False])
def test_what_is_not_listed_may_hold_anything(dot: bool) -> None:
    x, chosen = drawn(1, 100, 0.5, torch.float32)
    weight = by_input(50, 100, torch.float32)
    weight[:, ~chosen.mask()] = float("inf")
    assert sparse_linear(x, chosen, weight, config=Config(16, 32, 1, 2, dot)).isfinite().all()


def test_lists_serve_one_launch_after_another() -> None:
    x, chosen = drawn(2, 100, 0.5, torch.float32)
    weight, config = by_input(100, 100, torch.float32), Config(16, 32, 1, 2)
    first = sparse_linear(x, chosen, weight, config=config)
    assert not chosen.arrived.any()
    torch.testing.assert_close(sparse_linear(x, chosen, weight, config=config), first, rtol=0, atol=0)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 90),
    sizes=st.lists(st.integers(1, 90), min_size=2, max_size=3),
    biased=st.tuples(*[st.booleans()] * 3),
    dtype=st.sampled_from(DTYPES),
    config=CONFIGS,
    seed=st.integers(0, 99),
)
def test_several_weights_in_one_launch(
    rows: int,
    inputs: int,
    sizes: list[int],
    biased: tuple[bool, ...],
    dtype: torch.dtype,
    config: Config,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, chosen = drawn(rows, inputs, 0.5, dtype)
    biases = [torch.randn(size).to(dtype) if has else None for size, has in zip(sizes, biased, strict=False)]
    pairs = [(by_input(size, inputs, dtype), bias) for size, bias in zip(sizes, biases, strict=True)]
    (weight, added), *others = pairs
    found = sparse_linear(x, chosen, weight, bias=added, others=others, config=config)
    close(found, torch.cat([reference(x, chosen, w, bias=b) for w, b in pairs], -1))
    assert not chosen.arrived.any()


def test_more_tiles_than_channels() -> None:
    x, chosen = drawn(2, 70, 0.5, torch.float32, block=64)
    weight = by_input(4200, 70, torch.float32)
    assert chosen.arrived.numel() == 128
    close(sparse_linear(x, chosen, weight, config=Config(16, 32, 1, 2)), reference(x, chosen, weight))


@settings(max_examples=15)
@given(rows=st.integers(1, 8), inputs=st.integers(1, 70), seed=st.integers(0, 99), dot=st.booleans())
def test_scales_by_channel(rows: int, inputs: int, seed: int, dot: bool) -> None:
    torch.manual_seed(seed)
    x, chosen = drawn(rows, inputs, 0.5, torch.float32)
    weight = torch.randint(-127, 128, (inputs, 4100), dtype=torch.int8).t()
    scale = torch.rand(2, inputs)
    found = sparse_linear(x, chosen, weight, scale, config=Config(16, 512, 1, 2, dot))
    torch.testing.assert_close(found, reference(x, chosen, weight, scale), rtol=1e-5, atol=2e-3)


@settings(max_examples=20)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 90),
    least=st.sampled_from((0.0, 0.5, 1.0)),
    seed=st.integers(0, 99),
)
def test_counters_are_told_what_the_gate_kept(rows: int, inputs: int, least: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, norm, gate = torch.randn(rows, inputs), torch.rand(inputs), torch.tensor([0.4, least])
    counters, told = torch.ones(2, 3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    decision = decide(x.abs() * norm, gate)
    count(told, decision)
    chosen = lists.reference(x.abs() * norm, gate, 32)
    weight = by_input(50, inputs, torch.float32)
    found = sparse_linear(
        x, chosen, weight, gate=gate, counters=counters, counter=3, config=Config(16, 32, 1, 2)
    )
    assert counters.tolist() == [[1, 1, 1], told.tolist()]
    close(found, torch.where(decision.keep, x, 0.0) @ weight.t())


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_out_of_range(rows: int) -> None:
    _, chosen = drawn(1, 8, 0.5, torch.float32)
    with pytest.raises(ValueError, match="1 to 8 rows"):
        sparse_linear(torch.zeros(rows, 8), chosen, by_input(8, 8, torch.float32))


def test_what_does_not_fit() -> None:
    x, chosen = drawn(1, 8, 0.5, torch.float32)
    with pytest.raises(ValueError, match="weight by input"):
        sparse_linear(x, chosen, torch.zeros(16, 8))
    weight = by_input(16, 8, torch.float32)
    with pytest.raises(ValueError, match="two other weights at most"):
        sparse_linear(x, chosen, weight, others=[(weight, None)] * 3)
    with pytest.raises(ValueError, match="scales for one alone"):
        sparse_linear(x, chosen, weight, torch.ones(16), others=[(weight, None)])
    with pytest.raises(ValueError, match="lists of 8"):
        sparse_linear(torch.zeros(1, 9), chosen, by_input(16, 9, torch.float32))
    with pytest.raises(ValueError, match="64 at a time"):
        sparse_linear(x, chosen, by_input(16, 8, torch.float32), config=Config(64, 32, 1, 2))
