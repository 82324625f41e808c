"""The kernel under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import compact as module
from srrc.backends.triton.kernels.compact import compact, reference


def equal(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    """The counts, and the index as far as they say."""
    torch.testing.assert_close(found[1], truth[1])
    for row, right, kept in zip(*(pair[0] for pair in (found, truth)), truth[1].tolist(), strict=True):
        torch.testing.assert_close(row[:kept], right[:kept])


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    units=st.sampled_from((1, 7, 127, 128, 129, 300)),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    by_unit=st.booleans(),
    chunk=st.sampled_from((128, 4096)),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int, units: int, kept: float, by_unit: bool, chunk: int, seed: int
) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(units, rows).t() < kept if by_unit else torch.rand(rows, units) < kept
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGEST_CHUNK", chunk)
        equal(compact(mask), reference(mask))


@settings(max_examples=15)
@given(
    capacity=st.integers(0, 200), fill=st.sampled_from((-1, 0, 1, 199)), kept=st.sampled_from((0.0, 0.5, 1.0))
)
def test_a_capacity_and_a_fill(capacity: int, fill: int, kept: float) -> None:
    mask = torch.rand(3, 150) < kept
    index, count = compact(mask, capacity=capacity, fill=fill)
    right, many = reference(mask, capacity, fill)
    torch.testing.assert_close((index, count), (right, many))


def test_writes_nothing_past_the_count() -> None:
    mask = torch.rand(4, 90) < 0.5
    index, count = (
        torch.full((4, 200), -7, dtype=torch.int32)[:, :100],
        torch.empty(4, dtype=torch.int32),
    )
    assert compact(mask, out=(index, count))[0] is index
    equal((index, count), reference(mask))
    for row, kept in zip(index, count.tolist(), strict=True):
        assert (row[kept:] == -7).all()


def test_every_mask_is_read_in_its_own_rows() -> None:
    wide = torch.rand(6, 400) < 0.5
    equal(compact(wide[::2, 3:333:3]), reference(wide[::2, 3:333:3]))


@pytest.mark.parametrize(("rows", "units"), [(0, 5), (3, 0)])
def test_nothing_to_walk(rows: int, units: int) -> None:
    index, count = compact(torch.ones(rows, units, dtype=torch.bool))
    assert index.shape == (rows, units)
    assert count.tolist() == [0] * rows


@pytest.mark.parametrize("mask", [torch.ones(4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.uint8)])
def test_no_mask(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="bool mask"):
        compact(mask)


@pytest.mark.parametrize(
    ("index", "count", "match"),
    [
        (torch.empty(2, 8, dtype=torch.int32), torch.empty(3, dtype=torch.int32), "an index"),
        (torch.empty(3, 8, dtype=torch.int32), torch.empty(2, dtype=torch.int32), "an index"),
        (torch.empty(3, 8, dtype=torch.int64), torch.empty(3, dtype=torch.int32), "writes int32"),
        (torch.empty(8, 3, dtype=torch.int32).t(), torch.empty(3, dtype=torch.int32), "contiguous"),
        (torch.empty(3, 8, dtype=torch.int32), torch.empty(6, dtype=torch.int32)[::2], "contiguous"),
    ],
)
def test_outputs_that_do_not_fit(index: Tensor, count: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compact(torch.ones(3, 8, dtype=torch.bool), out=(index, count))
