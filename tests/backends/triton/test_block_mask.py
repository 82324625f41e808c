"""The compaction of masks under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels.block_mask import Blocks, compact, reference

BLOCKS = st.sampled_from(((16, 16), (32, 16), (16, 64)))


def listed(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """What the two lists hold, as masks; each in the order of keys."""
    whole, partial = torch.zeros(2, *blocks.index.shape, dtype=torch.bool)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in blocks.index.shape[:3])).tolist():
        row, (front, back) = blocks.index[tuple(at)], blocks.counts[tuple(at)].tolist()
        for found, names in ((whole, row[:front]), (partial, row.flip(0)[:back])):
            assert names.tolist() == sorted(set(names.tolist()))
            found[tuple(at)][names.long()] = True
    return whole, partial


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 90),
    keys=st.integers(1, 150),
    block=BLOCKS,
    causal=st.booleans(),
    window=st.none() | st.integers(1, 160),
    seen=st.sampled_from((0.0, 0.5, 1.0)),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    block: tuple[int, int],
    causal: bool,
    window: int | None,
    seen: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(-(-keys // block[1]), heads, -(-queries // block[0]), batch).permute(3, 1, 2, 0) < seen
    found = listed(compact(mask, queries, keys, block=block, causal=causal, window=window))
    for mine, true in zip(
        found, reference(mask, queries, keys, block=block, causal=causal, window=window), strict=True
    ):
        torch.testing.assert_close(mine, true)


def test_more_blocks_than_are_compacted_at_once() -> None:
    mask = torch.rand(1, 1, 1, 1100) < 0.5
    whole, partial = listed(compact(mask, 5, 16 * 1100 - 3, block=(16, 16)))
    torch.testing.assert_close(whole | partial, mask)
    assert torch.equal(partial.nonzero()[:, 3], torch.tensor([1099])[: int(mask[0, 0, 0, 1099])])


@pytest.mark.parametrize(
    ("shape", "queries", "keys", "options", "said"),
    [
        ((1, 1, 1, 1), 16, 16, {"block": (48, 16)}, "takes blocks of"),
        ((1, 1, 0, 1), 0, 16, {}, "at least one query"),
        ((1, 1, 1, 1), 16, 16, {"window": 0}, "position in a window"),
        ((1, 1, 1, 2), 16, 16, {}, "takes a bool mask"),
        ((1, 1, 1), 16, 16, {}, "takes a bool mask"),
    ],
)
def test_what_it_does_not_take(
    shape: tuple[int, ...], queries: int, keys: int, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        compact(torch.ones(shape, dtype=torch.bool), queries, keys, **options)  # type: ignore[arg-type]


def test_a_mask_of_floats() -> None:
    with pytest.raises(ValueError, match="takes a bool mask"):
        compact(torch.ones(1, 1, 1, 1), 16, 16)
