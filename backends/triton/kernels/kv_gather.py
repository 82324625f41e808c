"""KV gather: the positions of a cache that are kept, side by side.

    kv_gather(keys, values, index, count, (out_keys, out_values))

keys, values [B, H, S, D] of one dtype, whichever; index int32 [B, H, S'], the positions that are kept; count int32
[B, H], how many of them are valid -> out_keys[b, h, i] = keys[b, h, index[b, h, i]] for i < count[b, h], and values
likewise, in one launch. Outputs [B, H, S', D] are not touched past the count, so that a static cache can be reused. Any
strides with a contiguous last dimension. Bits are moved, never computed with.

No output may share memory with an input or with the other output: programs would read what others have written over,
so that a cache is not compacted where it stands. Disjoint slices of one buffer are welcome.

`positions` makes index and count of a mask.
Source: caches that keep what attention reads (H2O, Zhang et al. 2023; SnapKV, Li et al. 2024).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.multiprocessing.reductions import StorageWeakRef

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.compact import compact

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PLAIN = (torch.float16, torch.bfloat16, torch.float32)
"""Moved as they are, and others as integers: to a cache that is viewed as another dtype, a graph writes by way of a
copy."""


@dataclass(frozen=True)
class Config:
    """How a launch is cut: positions at once, and warps."""

    block_s: int
    num_warps: int


def configs() -> tuple[Config, ...]:
    """The space worth searching."""
    return Config(16, 4), Config(32, 4), Config(64, 4), Config(64, 8)


def default_config(row: int) -> Config:
    """Some 8 KB of keys and as much of values for each program; `row`: bytes of a position."""
    return Config(max(4, min(128, 8192 // triton.next_power_of_2(row))), 4)


def positions(keep: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """A mask bool [B, H, S] -> index int32 [B, H, capacity or S], undefined past the count, and count int32 [B, H]."""
    if keep.ndim != 3:
        raise ValueError(f"positions takes a mask [batch, heads, positions], not {tuple(keep.shape)}")
    index, count = compact(keep.flatten(0, 1), capacity=capacity)
    return index.unflatten(0, keep.shape[:2]), count.unflatten(0, keep.shape[:2])


def kv_gather(
    keys: Tensor,
    values: Tensor,
    index: Tensor,
    count: Tensor,
    out: tuple[Tensor, Tensor] | None = None,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch. `out`: where to put (keys, values). Raises ValueError for what the kernel does not take."""
    if out is None:
        shape = (*index.shape, keys.shape[-1])
        out = keys.new_empty(shape), values.new_empty(shape)
    _demand(keys, values, index, count, out)
    batch, heads, capacity = index.shape
    if index.numel() == 0:
        return out
    width = keys.shape[-1]
    config = config or default_config(width * keys.element_size())
    moved: tuple[Tensor, ...] = (keys, values, *out)
    if keys.dtype not in PLAIN:
        moved = tuple(x.view(BITS[keys.element_size()]) for x in moved)
    grid = (triton.cdiv(capacity, config.block_s), heads, batch)
    wrap_triton(_kv_gather)[grid](
        moved[0], moved[1], index, count, moved[2], moved[3], capacity,
        *keys.stride()[:3], *values.stride()[:3], *index.stride()[:2], *out[0].stride()[:3], *out[1].stride()[:3],
        D=width, BLOCK_S=config.block_s, BLOCK_D=triton.next_power_of_2(width), num_warps=config.num_warps,
    )  # fmt: skip
    return out


def _demand(keys: Tensor, values: Tensor, index: Tensor, count: Tensor, out: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError unless the kernel takes these."""
    tensors = (keys, values, *out)
    if any(t.ndim != 4 or t.shape[:2] != keys.shape[:2] or t.shape[3] != keys.shape[3] for t in tensors):
        raise ValueError(
            "kv_gather takes keys, values and outputs [batch, heads, positions, width], not "
            + ", ".join(str(tuple(t.shape)) for t in tensors)
        )
    if (
        keys.shape != values.shape
        or any(t.shape[:3] != index.shape for t in out)
        or count.shape != keys.shape[:2]
    ):
        raise ValueError(
            f"kv_gather takes an index {(*keys.shape[:2], out[0].shape[2])} and a count {tuple(keys.shape[:2])},"
            f" not {tuple(index.shape)} and {tuple(count.shape)}"
        )
    if any(t.dtype != keys.dtype for t in tensors) or keys.element_size() not in BITS:
        raise ValueError(
            f"kv_gather takes one dtype of 8 to 64 bits, not {', '.join(str(t.dtype) for t in tensors)}"
        )
    if index.dtype != torch.int32 or count.dtype != torch.int32:
        raise ValueError(f"kv_gather takes int32, not {index.dtype} and {count.dtype}")
    if any(t.stride(-1) != 1 for t in (*tensors, index)) or not count.is_contiguous():
        raise ValueError("kv_gather takes a contiguous last dimension and a contiguous count")
    pairs = [(target, source) for target in out for source in (keys, values)] + [out]
    if any(_meet(*pair) for pair in pairs):
        raise ValueError("kv_gather takes outputs that share no memory with keys, values or each other")


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype may share an element. Of tensors without data too, while they are traced.

    They share none where another storage, or one before the other, or the same windows of a period apart: as halves
    of the positions of each head are, or keys and values side by side. Offsets to no period may be taken for shared.
    """
    if StorageWeakRef(a.untyped_storage()) != StorageWeakRef(b.untyped_storage()):
        return False
    if a.numel() == 0 or b.numel() == 0:
        return False
    steps = [
        [(step, size) for size, step in zip(x.shape, x.stride(), strict=True) if size > 1] for x in (a, b)
    ]
    spans = [sum((size - 1) * step for step, size in each) for each in steps]
    ahead = b.storage_offset() - a.storage_offset()
    if ahead > spans[0] or -ahead > spans[1]:
        return False
    every = [step for each in steps for step, _ in each]
    for period in every:
        if period > 0 and all(step % period == 0 for step in every if step >= period):
            wide = [sum((size - 1) * step for step, size in each if step < period) for each in steps]
            if ahead % period > wide[0] and -ahead % period > wide[1]:
                return False
    return True


def reference(keys: Tensor, values: Tensor, index: Tensor, count: Tensor, out: tuple[Tensor, Tensor]) -> None:
    """The truth, into `out`."""
    bits = BITS[keys.element_size()]
    for b in range(keys.shape[0]):
        for h in range(keys.shape[1]):
            kept = index[b, h, : int(count[b, h])].long()
            for source, target in zip((keys, values), out, strict=True):
                target.view(bits)[b, h, : len(kept)] = source.view(bits)[b, h, kept]


@triton.jit
def _kv_gather(
    keys, values, index, count, out_keys, out_values, capacity,
    keys_b, keys_h, keys_s, values_b, values_h, values_s, index_b, index_h,
    out_keys_b, out_keys_h, out_keys_s, out_values_b, out_values_h, out_values_s,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    # The index is not waited for by way of the count: what lies past it is read, and not used.
    at = tl.load(index + b * index_b + h * index_h + s, mask=s < capacity, other=0).to(tl.int64)[:, None]
    valid = tl.minimum(tl.load(count + b * tl.num_programs(1) + h), capacity)
    if tl.program_id(0) * BLOCK_S < valid:
        mine = (s < valid)[:, None] & (d < D)[None, :]
        to = s.to(tl.int64)[:, None]
        across = d[None, :]
        # Both are on their way before either is written.
        key = tl.load(keys + b * keys_b + h * keys_h + at * keys_s + across, mask=mine)
        value = tl.load(values + b * values_b + h * values_h + at * values_s + across, mask=mine)
        tl.store(out_keys + b * out_keys_b + h * out_keys_h + to * out_keys_s + across, key, mask=mine)
        tl.store(
            out_values + b * out_values_b + h * out_values_h + to * out_values_s + across, value, mask=mine
        )


def _ahead(bits: str, width: int) -> Ahead:
    names = _kv_gather.arg_names
    signature = dict.fromkeys(("keys", "values", "out_keys", "out_values"), f"*{bits}")
    signature |= {"index": "*i32", "count": "*i32"}
    signature |= {name: "i32:16" for name in names if name == "capacity" or name[-2:] in {"_b", "_h", "_s"}}
    size = {"u8": 1, "i16": 2, "i32": 4, "i64": 8}[bits] * width
    config = default_config(size)
    constants = {"D": width, "BLOCK_S": config.block_s, "BLOCK_D": triton.next_power_of_2(width)}
    return Ahead(f"kv_gather[{bits}, {width} wide]", _kv_gather, signature, constants, config.num_warps)


AHEAD = tuple(_ahead(bits, width) for bits in ("u8", "i16", "i32", "i64") for width in (64, 96, 128))
