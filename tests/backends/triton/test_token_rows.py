"""The kernels under Triton's interpreter against the references."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels.compact import compact
from srrc.backends.triton.kernels.token_rows import (
    Config,
    gather,
    reference_gather,
    reference_scatter,
    scatter,
)

CONFIGS = st.sampled_from((None, Config(1, 32, 1), Config(4, 64, 1)))
DTYPES = st.sampled_from((torch.float32, torch.float16))


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """What is allocated and not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def chosen(tokens: int, kept: float, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """An index that holds what no kernel may follow past the count."""
    index, count = compact((torch.rand(1, tokens) < kept), capacity=capacity, fill=1 << 30)
    return index[0], count


def strided(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, width + 5).to(dtype)[:, :width]


@settings(max_examples=30)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 150),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=DTYPES,
    config=CONFIGS,
    seed=st.integers(0, 99),
)
def test_gather_equals_the_reference(
    tokens: int, width: int, kept: float, dtype: torch.dtype, config: Config | None, seed: int
) -> None:
    torch.manual_seed(seed)
    x = strided(tokens, width, dtype)
    index, count = chosen(tokens, kept)
    found = gather(x, index, count, config=config)
    torch.testing.assert_close(found, reference_gather(x, index, count), rtol=0, atol=0)


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 150),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=DTYPES,
    add=st.booleans(),
    config=CONFIGS,
    seed=st.integers(0, 99),
)
def test_scatter_equals_the_reference(
    tokens: int, width: int, kept: float, dtype: torch.dtype, add: bool, config: Config | None, seed: int
) -> None:
    torch.manual_seed(seed)
    base, rows = strided(tokens, width, dtype), strided(tokens, width, dtype)
    index, count = chosen(tokens, kept)
    rows[int(count) :] = torch.nan
    truth = reference_scatter(base, rows, index, count, add=add)
    assert scatter(base, rows, index, count, add=add, config=config) is base
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(base, truth, **(tolerance if add else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("capacity", [5, 40])
def test_a_capacity_other_than_the_tokens(capacity: int) -> None:
    x = torch.randn(12, 20)
    index, count = chosen(12, 1.0, capacity)
    rows = gather(x, index, count)
    torch.testing.assert_close(rows[:12], x[:capacity], rtol=0, atol=0)
    assert not rows[12:].any()
    torch.testing.assert_close(
        scatter(x.clone(), rows, index, count)[:capacity], 2 * x[:capacity], rtol=0, atol=0
    )


def test_a_count_past_the_capacity_ends_there() -> None:
    x, base = torch.randn(12, 20), torch.zeros(12, 20)
    index, count = torch.arange(12, dtype=torch.int32)[:7], torch.tensor([12], dtype=torch.int32)
    rows = gather(x, index, count)
    torch.testing.assert_close(rows, x[:7], rtol=0, atol=0)
    torch.testing.assert_close(scatter(base, rows, index, count)[:7], x[:7], rtol=0, atol=0)
    assert not base[7:].any()


def test_no_capacity() -> None:
    x, (index, count) = torch.randn(4, 8), chosen(4, 1.0, 0)
    rows = gather(x, index, count)
    assert rows.shape == (0, 8)
    assert torch.equal(scatter(x.clone(), rows, index, count), x)


INDEX, COUNT = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("x", "index", "count", "match"),
    [
        (torch.zeros(4), INDEX, COUNT, "contiguous rows"),
        (torch.zeros(4, 8, dtype=torch.float64), INDEX, COUNT, "contiguous rows"),
        (torch.zeros(8, 4).t(), INDEX, COUNT, "contiguous rows"),
        (torch.zeros(4, 8), INDEX[None], COUNT, "contiguous index"),
        (torch.zeros(4, 8), INDEX.repeat(2)[::2], COUNT, "contiguous index"),
        (torch.zeros(4, 8), INDEX, INDEX, "contiguous index"),
        (torch.zeros(4, 8), INDEX.long(), COUNT, "int32"),
        (torch.zeros(4, 8), INDEX, COUNT.long(), "int32"),
    ],
)
def test_what_does_not_fit(x: Tensor, index: Tensor, count: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gather(x, index, count)
    with pytest.raises(ValueError, match=match):
        scatter(x, torch.zeros(3, 8), index, count)


@pytest.mark.parametrize(
    "rows", [torch.zeros(4, 8), torch.zeros(3, 8, dtype=torch.float16), torch.zeros(8, 3).t()]
)
def test_rows_that_do_not_fit(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="takes rows"):
        scatter(torch.zeros(4, 8), rows, INDEX, COUNT)
