"""Compact: which units are kept, as a list.

    compact(mask) -> index, count

mask bool [R, N], any strides -> index int32 [R, C], the columns that are True in rising order, and count int32 [R], how
many there are, C at most: a row with more keeps its first C. Past its count a row of index holds `fill`, or anything
where none is given. C is `capacity`, N where none is given.

One program a row: it walks in chunks and adds up, so that the order and the result are the same in every run.
Source: stream compaction by prefix sums (Blelloch 1990).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from srrc.backends.triton.ahead import Ahead

LARGEST_CHUNK = 4096


def compact(
    mask: Tensor,
    *,
    capacity: int | None = None,
    fill: int | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch. `out`: (index, count), whose capacity is taken. Raises ValueError for what the kernel does not take."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"compact takes a bool mask [rows, units], not {mask.dtype} {tuple(mask.shape)}")
    rows, units = mask.shape
    if out is None:
        index = torch.empty(
            rows, units if capacity is None else capacity, dtype=torch.int32, device=mask.device
        )
        out = index, torch.empty(rows, dtype=torch.int32, device=mask.device)
    index, count = out
    if index.ndim != 2 or index.shape[0] != rows or count.shape != (rows,):
        raise ValueError(
            f"compact takes an index [{rows}, capacity] and a count [{rows}], not {tuple(index.shape)} and"
            f" {tuple(count.shape)}"
        )
    if index.dtype != torch.int32 or count.dtype != torch.int32:
        raise ValueError(f"compact writes int32, not {index.dtype} and {count.dtype}")
    if index.stride(1) != 1 or not count.is_contiguous():
        raise ValueError(
            f"compact writes contiguous rows and a contiguous count, not strides {index.stride()}"
        )
    if rows == 0:
        return out
    chunk = min(LARGEST_CHUNK, max(128, triton.next_power_of_2(units)))
    wrap_triton(_compact)[(rows,)](
        mask, index, count, fill,
        units, index.shape[1], mask.stride(0), mask.stride(1), index.stride(0),
        CHUNK=chunk, num_warps=_warps(chunk),
    )  # fmt: skip
    return out


def reference(mask: Tensor, capacity: int | None = None, fill: int = 0) -> tuple[Tensor, Tensor]:
    """The truth: a row at a time."""
    rows, units = mask.shape
    index = torch.full(
        (rows, units if capacity is None else capacity), fill, dtype=torch.int32, device=mask.device
    )
    for row, kept in zip(index, mask, strict=True):
        found = kept.nonzero()[:, 0][: len(row)]
        row[: len(found)] = found
    return index, mask.sum(1).clamp(max=index.shape[1]).to(torch.int32)


def _warps(chunk: int) -> int:
    """16 bytes of the mask a thread: what one load moves."""
    return max(1, chunk // 512)


@triton.jit
def _compact(
    mask, index, count, fill,
    units, capacity, stride_row, stride_unit, stride_index,
    CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, CHUNK)
    source = mask + row * stride_row
    target = index + row * stride_index
    kept = tl.zeros((), tl.int32)
    following = tl.load(source + unit.to(tl.int64) * stride_unit, mask=unit < units, other=0)
    for _ in range(0, units, CHUNK):
        keep = (following != 0).to(tl.int32)
        # The next chunk is on its way while this one is added up.
        ahead = unit + CHUNK
        following = tl.load(source + ahead.to(tl.int64) * stride_unit, mask=ahead < units, other=0)
        place = kept + tl.cumsum(keep, 0) - 1
        tl.store(target + place, unit, mask=(keep != 0) & (place < capacity))
        kept += tl.sum(keep, 0)
        unit = ahead
    kept = tl.minimum(kept, capacity)
    tl.store(count + tl.program_id(0), kept)
    if fill is not None:
        for first in range(kept, capacity, CHUNK):
            place = first + tl.arange(0, CHUNK)
            tl.store(target + place, tl.full((CHUNK,), 0, tl.int32) + fill, mask=place < capacity)


def _ahead(chunk: int, filled: bool) -> Ahead:
    signature = {"mask": "*i1", "index": "*i32", "count": "*i32", "units": "i32:16", "capacity": "i32:16"}
    signature |= {"stride_row": "i32:16", "stride_index": "i32:16"} | ({"fill": "i32"} if filled else {})
    constants = {"stride_unit": 1, "CHUNK": chunk} | ({} if filled else {"fill": None})
    name = f"compact[chunks of {chunk}{', filled' if filled else ''}]"
    return Ahead(name, _compact, signature, constants, _warps(chunk))


AHEAD = tuple(_ahead(chunk, filled) for chunk in (128, LARGEST_CHUNK) for filled in (False, True))
