"""Linear that reads the weights of inputs that are not zero: a channel gate writes zeros, and they cost nothing here.

    sparse_linear(x, weight, scale=None, bias=None) -> x @ weight.T * scale + bias

x [B, K], 1 <= B <= 16; weight [N, K] laid out by input (strides (1, N)), of x's dtype or int8; scale float32 [N], for
int8 alone; bias [N] -> [B, N] of x's dtype; fp16, bf16 or fp32, accumulated in fp32. Channel k is read where any row's
x[b, k] is not zero (NaN is not), so an infinite weight of a channel that nobody reads leaves no NaN.

One launch: K is split among programs, each writes its part in fp32, and the last of a column to arrive adds the parts
up in their order. No atomic touches a value, so that the same input gives the same bits.
Source: TEAL (Liu et al. 2024), whose kernel adds with atomics in half precision.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead

MAX_ROWS = 16


@dataclass(frozen=True)
class Config:
    """How a launch is cut: inputs and outputs at once, parts of K (a power of two), and Triton's own."""

    block_k: int
    block_n: int
    split: int
    num_warps: int
    num_stages: int = 2


@dataclass(frozen=True)
class Workspace:
    """What launches share: parts float32 [split * B * N] at least; arrived int32 [tiles], zero between launches.

    Launches that run at the same time must not share one.
    """

    parts: Tensor
    arrived: Tensor


def workspace(x: Tensor, outputs: int, config: Config) -> Workspace:
    """A workspace for linears of `outputs` outputs."""
    tiles = triton.cdiv(outputs, config.block_n)
    parts = torch.empty(config.split * len(x) * outputs, dtype=torch.float32, device=x.device)
    return Workspace(parts, torch.zeros(tiles, dtype=torch.int32, device=x.device))


def configs(rows: int) -> tuple[Config, ...]:
    """The space worth searching: 256 outputs of a 16-bit row are what a warp loads at once."""
    if rows == 1:
        tiles = (
            (16, 256, 4, 1),
            (16, 256, 4, 4),
            (32, 256, 4, 1),
            (32, 256, 4, 3),
            (64, 256, 8, 1),
            (64, 256, 8, 3),
        )
        tiles += ((32, 128, 4, 3), (16, 512, 4, 3))
    else:
        tiles = ((64, 128, 4, 4), (128, 128, 4, 3), (64, 256, 8, 3), (128, 64, 4, 4))
    return tuple(Config(k, n, split, w, s) for k, n, w, s in tiles for split in (8, 16, 32))


def default_config(x: Tensor, outputs: int) -> Config:
    """What is good where nothing was measured: some four programs for each of an H100's multiprocessors."""
    rows, inputs = x.shape
    block_k, block_n, warps, stages = (16, 256, 4, 4) if rows == 1 else (64, 128, 4, 4)
    wanted = triton.cdiv(528, triton.cdiv(outputs, block_n))
    split = triton.next_power_of_2(max(1, min(32, wanted, triton.cdiv(inputs, 4 * block_k))))
    return Config(block_k, block_n, split, warps, stages)


def sparse_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    config: Config | None = None,
    space: Workspace | None = None,
) -> Tensor:
    """Launch. Raises ValueError for what the kernel does not take."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    if not 1 <= rows <= MAX_ROWS or weight.stride(0) != 1 or x.stride(-1) != 1:
        raise ValueError(
            f"sparse_linear takes 1 to {MAX_ROWS} rows and a weight by input, not {tuple(x.shape)} and"
            f" strides {weight.stride()}"
        )
    config = config or default_config(x, outputs)
    space = space or workspace(x, outputs, config)
    out = x.new_empty(rows, outputs)
    grid = (triton.cdiv(outputs, config.block_n), config.split)
    _sparse_linear[grid](
        x, weight, scale, bias, out, space.parts, space.arrived,
        inputs, outputs, x.stride(0), weight.stride(1),
        ROWS=rows, BLOCK_K=config.block_k, BLOCK_N=config.block_n, SPLIT=config.split, STAGES=config.num_stages,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


def reference(x: Tensor, weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The truth, in float64: columns that no row reads are left out."""
    alive = (x != 0).any(0)
    out = F.linear(x[:, alive].double(), weight[:, alive].double())
    out = out if scale is None else out * scale.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)


@triton.jit
def _sparse_linear(
    x, weight, scale, bias, out, parts, arrived,
    inputs, outputs, stride_x, stride_k,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    part = tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < outputs
    steps = tl.cdiv(tl.cdiv(inputs, BLOCK_K), SPLIT)
    first = part * steps * BLOCK_K
    k = first + tl.arange(0, BLOCK_K)
    column = weight + n[None, :]
    if ROWS == 1:
        # The products of a row need no tensor core. A sum over K is left to the end: each thread has its own.
        wide = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
        for _ in tl.range(steps, num_stages=STAGES):
            value = tl.load(x + k, mask=k < inputs, other=0.0)
            read = (value != 0.0)[:, None] & inside[None, :]
            w = tl.load(column + k[:, None].to(tl.int64) * stride_k, mask=read, other=0.0)
            wide += value.to(tl.float32)[:, None] * w.to(tl.float32)
            k += BLOCK_K
        total = tl.sum(wide, 0)[None, :]
        b = tl.zeros((1,), tl.int32)
    else:
        b = tl.arange(0, 16)
        total = tl.zeros((16, BLOCK_N), tl.float32)
        for _ in tl.range(steps, num_stages=STAGES):
            at = x + b[:, None] * stride_x + k[None, :]
            value = tl.load(at, mask=(b < ROWS)[:, None] & (k < inputs)[None, :], other=0.0)
            read = tl.max((value != 0.0).to(tl.int32), 0) > 0
            w = tl.load(
                column + k[:, None].to(tl.int64) * stride_k, mask=read[:, None] & inside[None, :], other=0.0
            )
            total = tl.dot(value, w.to(value.dtype), total, input_precision="ieee")
            k += BLOCK_K
    mine = (b < ROWS)[:, None] & inside[None, :]
    at = b[:, None] * outputs + n[None, :]
    if SPLIT > 1:
        tl.store(parts + part * ROWS * outputs + at, total, mask=mine)
        tl.debug_barrier()  # every thread's part is written before one of them says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT - 1:
            if ROWS == 1:
                # All parts at once: one after the other each would wait for memory.
                each = tl.arange(0, SPLIT)[:, None] * outputs + n[None, :]
                found = tl.load(parts + each, mask=inside[None, :], other=0.0, cache_modifier=".cg")
                total = tl.sum(found, 0)[None, :]
            else:
                total = tl.zeros_like(total)
                for other in tl.static_range(SPLIT):
                    total += tl.load(
                        parts + other * ROWS * outputs + at, mask=mine, other=0.0, cache_modifier=".cg"
                    )
            tl.store(arrived + tile, 0)
            _finish(total, scale, bias, out, at, n, mine, inside)
    else:
        _finish(total, scale, bias, out, at, n, mine, inside)


@triton.jit
def _finish(total, scale, bias, out, at, n, mine, inside):
    if scale is not None:
        total *= tl.load(scale + n, mask=inside, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mine)


def _ahead(dtype: str, weight: str, rows: int, config: Config) -> Ahead:
    pointers = {"x": dtype, "weight": weight, "out": dtype, "parts": "fp32", "arrived": "i32"}
    pointers |= {"scale": "fp32"} if weight == "i8" else {}
    sizes = {"inputs": "i32:16", "outputs": "i32:16", "stride_x": "i32:16", "stride_k": "i32:16"}
    constants = {
        "ROWS": rows,
        "BLOCK_K": config.block_k,
        "BLOCK_N": config.block_n,
        "SPLIT": config.split,
        "STAGES": config.num_stages,
        "bias": None,
    }
    constants |= {} if weight == "i8" else {"scale": None}
    signature = {name: f"*{kind}" for name, kind in pointers.items()} | sizes
    name = f"sparse_linear[{dtype}, {weight}, {rows} rows]"
    return Ahead(name, _sparse_linear, signature, constants, config.num_warps, config.num_stages)


AHEAD = tuple(
    _ahead(dtype, weight, rows, Config(16, 256, 16, 4, 4) if rows == 1 else Config(64, 128, 16, 4, 4))
    for dtype, weight in (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "i8"), ("fp32", "fp32"))
    for rows in (1, 8)
)
