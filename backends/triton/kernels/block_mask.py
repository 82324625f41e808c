"""Masks of blocks for attention, made into lists of the key blocks that each query block sees.

    compact(mask, Tq, Tk, block=(128, 128), causal=True, window=None) -> Blocks

mask bool [B or 1, H or 1, query blocks, key blocks], any strides; the queries are the last Tq of the Tk positions.
Within the blocks, `causal` hides the keys after a query, and `window` all but the last `window` keys up to it (the
keys after it, where attention is not causal, remain). A block of which every query sees every key is whole; one that
causality, the window or the last key cuts is partial; one that they hide is dropped, so that the mask may name all.

One launch, a program for each query block; the lists serve any number of layers.
Source: FlexAttention (Dong et al. 2024), whose BlockMask has the same two lists.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from srrc.backends.triton.ahead import Ahead

BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Blocks:
    """The key blocks that each query block sees.

    index:  int32 [B or 1, H or 1, query blocks, key blocks], whole ones from the front, partial ones from the back;
            what lies between is not written
    counts: int32 [B or 1, H or 1, query blocks, 2], of whole and of partial ones
    block:  queries and keys of a block
    """

    index: Tensor
    counts: Tensor
    block: tuple[int, int]
    queries: int
    keys: int
    causal: bool
    window: int | None


def compact(
    mask: Tensor,
    queries: int,
    keys: int,
    *,
    block: tuple[int, int] = (128, 128),
    causal: bool = True,
    window: int | None = None,
) -> Blocks:
    """Launch the compaction. Raises ValueError for what it does not take."""
    if not {*block} <= {*BLOCK_SIZES} or min(queries, keys) < 1 or (window is not None and window < 1):
        raise ValueError(f"compact takes blocks of {BLOCK_SIZES} and at least one query, key and position in a window,"
                         f" not {block}, {queries}, {keys} and {window}")  # fmt: skip
    m, n = triton.cdiv(queries, block[0]), triton.cdiv(keys, block[1])
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[2:] != (m, n):
        raise ValueError(f"compact takes a bool mask [B, H, {m}, {n}], not {mask.dtype} {tuple(mask.shape)}")
    index = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    counts = torch.empty(*mask.shape[:3], 2, dtype=torch.int32, device=mask.device)
    wrap_triton(_compact)[(m, mask.shape[0] * mask.shape[1])](
        mask, index, counts, *mask.stride(), mask.shape[1], queries, keys, n, window,
        BLOCK_M=block[0], BLOCK_N=block[1], CAUSAL=causal, CHUNK=min(1024, triton.next_power_of_2(n)), num_warps=4,
    )  # fmt: skip
    return Blocks(index, counts, block, queries, keys, causal, window)


def expand(
    mask: Tensor,
    queries: int,
    keys: int,
    *,
    block: tuple[int, int] = (128, 128),
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """What each query sees, element by element and in plain PyTorch: bool [B or 1, H or 1, Tq, Tk]."""
    seen = mask.repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)[:, :, :queries, :keys]
    position = torch.arange(keys - queries, keys, device=mask.device)[:, None]
    key = torch.arange(keys, device=mask.device)[None, :]
    seen = seen & (key <= position) if causal else seen
    return seen if window is None else seen & (key > position - window)


def reference(
    mask: Tensor,
    queries: int,
    keys: int,
    *,
    block: tuple[int, int] = (128, 128),
    causal: bool = True,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The truth, block by block: bool of the mask's shape each, what is whole and what is partial."""
    seen = expand(mask, queries, keys, block=block, causal=causal, window=window)
    whole, some = torch.zeros_like(mask), torch.zeros_like(mask)
    for m in range(mask.shape[2]):
        for n in range(mask.shape[3]):
            part = seen[:, :, m * block[0] : (m + 1) * block[0], n * block[1] : (n + 1) * block[1]].flatten(2)
            some[:, :, m, n] = part.any(2)
            whole[:, :, m, n] = part.all(2) & ((n + 1) * block[1] <= keys)
    return whole, some & ~whole


@triton.jit
def _compact(
    mask, index, counts, stride_b, stride_h, stride_m, stride_n, heads, queries, keys, key_blocks, window,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    entry = tl.program_id(1)
    line = entry.to(tl.int64) * tl.num_programs(0) + row
    mask += (entry // heads).to(tl.int64) * stride_b + (entry % heads).to(tl.int64) * stride_h
    mask += row.to(tl.int64) * stride_m
    index += line * key_blocks
    # The positions of the block's first and last query.
    low = keys - queries + row * BLOCK_M
    high = keys - queries + tl.minimum((row + 1) * BLOCK_M, queries) - 1
    wholes = tl.zeros((), tl.int32)
    partials = tl.zeros((), tl.int32)
    for start in range(0, key_blocks, CHUNK):
        block = start + tl.arange(0, CHUNK)
        seen = tl.load(mask + block.to(tl.int64) * stride_n, mask=block < key_blocks, other=0) != 0
        first = block * BLOCK_N
        last = first + BLOCK_N - 1
        uncut = last < keys
        if CAUSAL:
            seen = seen & (first <= high)
            uncut = uncut & (last <= low)
        if window is not None:
            seen = seen & (last > low - window)
            uncut = uncut & (first > high - window)
        whole = (seen & uncut).to(tl.int32)
        partial = seen.to(tl.int32) - whole
        tl.store(index + wholes + tl.cumsum(whole, 0) - 1, block, mask=whole != 0)
        tl.store(index + key_blocks - partials - tl.cumsum(partial, 0), block, mask=partial != 0)
        wholes += tl.sum(whole, 0)
        partials += tl.sum(partial, 0)
    tl.store(counts + 2 * line, wholes)
    tl.store(counts + 2 * line + 1, partials)


def _ahead() -> Ahead:
    strides = ("stride_b", "stride_h", "stride_m", "stride_n")
    numbers = (*strides, "heads", "queries", "keys", "key_blocks", "window")
    signature = {"mask": "*i1", "index": "*i32", "counts": "*i32"} | dict.fromkeys(numbers, "i32")
    constants = {"BLOCK_M": 128, "BLOCK_N": 128, "CAUSAL": True, "CHUNK": 256}
    return Ahead("block_mask", _compact, signature, constants, 4)


AHEAD = (_ahead(),)
