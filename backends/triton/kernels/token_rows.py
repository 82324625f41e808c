"""Token rows: gather the tokens that a layer computes, and scatter what it made of them.

    gather(x, index, count) -> rows               rows[i] = x[index[i]] for i < count, else 0
    scatter(base, rows, index, count) -> base     base[index[i]] += rows[i] for i < count; or = where `add` is False

x, base [T, H] with contiguous rows; index int32 [C] without repeats, as `compact` makes it; count int32 [1]; rows
[C, H]; fp16, bf16 or fp32, added in fp32. C is a capacity, whatever the data: gathered rows past the count are zeros,
so that what a layer computes of them is harmless. scatter works in place and uses nothing past the count.

Source: tokens that go round a layer (Mixture-of-Depths, Raposo et al. 2024).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from srrc.backends.triton.ahead import Ahead

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Config:
    """How a launch is cut: rows and columns at once, and warps."""

    block_t: int
    block_h: int
    num_warps: int = 4


def configs(width: int) -> tuple[Config, ...]:
    """The space worth searching: one row at once, or several."""
    block_h = min(1024, triton.next_power_of_2(width))
    return Config(1, block_h), Config(4, block_h), Config(8, block_h, 8)


def default_config(rows: int, width: int) -> Config:
    """A row in parts where there are few, so that they fill the card; else some four rows at once."""
    block_h = min(1024, triton.next_power_of_2(width))
    return Config(1, block_h) if rows <= 256 else Config(4096 // max(512, block_h), block_h)


def gather(x: Tensor, index: Tensor, count: Tensor, *, config: Config | None = None) -> Tensor:
    """Launch. Raises ValueError for what the kernel does not take."""
    _demand("gather", x, index, count)
    out = x.new_empty(index.shape[0], x.shape[1])
    if out.numel() == 0:
        return out
    config = config or default_config(*out.shape)
    grid = (triton.cdiv(index.shape[0], config.block_t), triton.cdiv(x.shape[1], config.block_h))
    wrap_triton(_gather)[grid](
        x, index, count, out, index.shape[0], x.shape[1], x.stride(0),
        BLOCK_T=config.block_t, BLOCK_H=config.block_h, num_warps=config.num_warps,
    )  # fmt: skip
    return out


def scatter(
    base: Tensor,
    rows: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    add: bool = True,
    config: Config | None = None,
) -> Tensor:
    """Launch, and return base. Raises ValueError for what the kernel does not take."""
    _demand("scatter", base, index, count)
    if rows.shape != (index.shape[0], base.shape[1]) or rows.dtype != base.dtype or rows.stride(-1) != 1:
        raise ValueError(
            f"scatter takes rows {(index.shape[0], base.shape[1])} of {base.dtype} that are contiguous, not"
            f" {tuple(rows.shape)} of {rows.dtype}, strides {rows.stride()}"
        )
    if rows.numel() == 0:
        return base
    config = config or default_config(*rows.shape)
    grid = (triton.cdiv(index.shape[0], config.block_t), triton.cdiv(base.shape[1], config.block_h))
    wrap_triton(_scatter)[grid](
        base, rows, index, count, index.shape[0], base.shape[1], base.stride(0), rows.stride(0),
        ADD=add, BLOCK_T=config.block_t, BLOCK_H=config.block_h, num_warps=config.num_warps,
    )  # fmt: skip
    return base


def _demand(name: str, x: Tensor, index: Tensor, count: Tensor) -> None:
    """Raise ValueError unless the kernels take these."""
    if x.ndim != 2 or x.dtype not in DTYPES or x.stride(-1) != 1:
        raise ValueError(
            f"{name} takes contiguous rows of fp16, bf16 or fp32, not {x.dtype} {tuple(x.shape)}, strides"
            f" {x.stride()}"
        )
    if index.ndim != 1 or count.numel() != 1 or not index.is_contiguous():
        raise ValueError(
            f"{name} takes a contiguous index [capacity] and a count [1], not {tuple(index.shape)} and"
            f" {tuple(count.shape)}"
        )
    if index.dtype != torch.int32 or count.dtype != torch.int32:
        raise ValueError(f"{name} takes int32, not {index.dtype} and {count.dtype}")


def reference_gather(x: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """The truth."""
    out = x.new_zeros(len(index), x.shape[1])
    kept = index[: int(count)].long()
    out[: len(kept)] = x[kept]
    return out


def reference_scatter(
    base: Tensor, rows: Tensor, index: Tensor, count: Tensor, *, add: bool = True
) -> Tensor:
    """The truth, in float64; base is left as it is."""
    out = base.double()
    kept = index[: int(count)].long()
    out[kept] = rows[: len(kept)].double() + (out[kept] if add else 0.0)
    return out.to(base.dtype)


@triton.jit
def _gather(x, index, count, out, capacity, width, stride_x, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):
    i = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    # The index is not waited for by way of the count: what lies past it is read, and not used.
    t = tl.load(index + i, mask=i < capacity, other=0).to(tl.int64)[:, None]
    valid = i < tl.load(count)
    inside = (i < capacity)[:, None] & (h < width)[None, :]
    row = tl.load(x + t * stride_x + h[None, :], mask=inside & valid[:, None], other=0.0)
    tl.store(out + i.to(tl.int64)[:, None] * width + h[None, :], row, mask=inside)


@triton.jit
def _scatter(
    base, rows, index, count, capacity, width, stride_base, stride_rows,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    t = tl.load(index + i, mask=i < capacity, other=0).to(tl.int64)[:, None]
    valid = tl.minimum(tl.load(count), capacity)
    if tl.program_id(0) * BLOCK_T < valid:
        mine = (i < valid)[:, None] & (h < width)[None, :]
        row = tl.load(rows + i.to(tl.int64)[:, None] * stride_rows + h[None, :], mask=mine, other=0.0)
        target = base + t * stride_base + h[None, :]
        if ADD:
            row = tl.load(target, mask=mine, other=0.0).to(tl.float32) + row.to(tl.float32)
        tl.store(target, row.to(base.dtype.element_ty), mask=mine)


def _ahead(kernel: str, dtype: str, config: Config) -> Ahead:
    signature = {"index": "*i32", "count": "*i32", "capacity": "i32:16", "width": "i32:16"}
    constants = {"BLOCK_T": config.block_t, "BLOCK_H": config.block_h}
    name = f"{kernel}[{dtype}, {config.block_t} x {config.block_h}]"
    if kernel == "gather":
        signature |= {"x": f"*{dtype}", "out": f"*{dtype}", "stride_x": "i32:16"}
        return Ahead(name, _gather, signature, constants, config.num_warps)
    signature |= {"base": f"*{dtype}", "rows": f"*{dtype}", "stride_base": "i32:16", "stride_rows": "i32:16"}
    return Ahead(name, _scatter, signature, constants | {"ADD": kernel == "scatter, add"}, config.num_warps)


AHEAD = tuple(
    _ahead(kernel, dtype, config)
    for kernel in ("gather", "scatter, add", "scatter")
    for dtype in DTYPES.values()
    for config in (Config(1, 1024), Config(4, 1024))
)
