"""Which units are worth computing, by an estimate of low rank that knows its own uncertainty, listed block by block.

    estimator(x, projection, decoder, norm, gate, spread=None, projection_scale=None, decoder_scale=None) -> Kept

x [B, K], 1 <= B <= 8; projection [R, K] and decoder [I, R], R <= 128, by row; fp16, bf16 or fp32, accumulated in fp32.
Or both weights are int8, with a scale for the sum of each of their rows, float32 [R] and [I]; no others have scales.
norm (what a unit is worth) and spread (its residual: what the estimate leaves open) float32 [I]; gate float32 [2]:
(threshold, min_kept), as `srrc.ops.gate` says.

    estimate = decoder @ (projection @ x * projection_scale) * decoder_scale
    score = sqrt(estimate^2 + (spread * rms(x))^2) * norm

A unit is kept unless its score <= threshold: NaN is, and a negative threshold keeps everything. Rows share the union,
listed block by block (`lists.py`).

projection @ x is small, but every program needs all of it. Fused, each computes it again, from a projection in L2: one
launch, for some ten thousand values. Otherwise a first launch computes it: to read 64 x 4096 values from L2 takes every
program longer than both launches take.
Source of the idea: Deja Vu (Liu et al. 2023), whose predictors do not know what they do not know.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.lists import Kept, empty, list_units
from srrc.ops.gate import MAX_ROWS

MAX_RANK = 128
FUSED = 1 << 16  # products (rows * rank * inputs) up to which each program computes projection @ x by itself


@dataclass(frozen=True)
class Config:
    """How a launch is cut: units of a block, inputs at once, and Triton's own.

    fused: one launch. early: the second starts under the first and reads the decoder (sm_90 and newer, not fused).
    """

    block: int = 128
    block_k: int = 1024
    fused: bool = False
    early: bool = False
    num_warps: int = 4


def default_config(x: Tensor, rank: int) -> Config:
    """What is good where nothing was measured: what a program reads fits its registers at once."""
    rows, inputs = x.shape
    fused, warps = rows * rank * inputs <= FUSED, 4 if rank <= 64 else 8
    fits = 4096 // triton.next_power_of_2(rank) if fused else min(8192 // triton.next_power_of_2(rows), 2048)
    return Config(block_k=min(fits, triton.next_power_of_2(inputs)), fused=fused, num_warps=warps)


def estimator(
    x: Tensor,
    projection: Tensor,
    decoder: Tensor,
    norm: Tensor,
    gate: Tensor,
    spread: Tensor | None = None,
    projection_scale: Tensor | None = None,
    decoder_scale: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Kept:
    """Launch. Raises ValueError for what the kernel does not take."""
    (rows, inputs), (count, rank) = x.shape, decoder.shape
    if not 1 <= rows <= MAX_ROWS or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"estimator takes 1 to {MAX_ROWS} rows, ranks to {MAX_RANK}, not {rows}, {rank}")
    if projection.shape != (rank, inputs) or any(t.stride(1) != 1 for t in (x, projection, decoder)):
        raise ValueError(f"estimator takes a projection [{rank}, {inputs}], and it, x and decoder by row")
    for per_unit in (norm,) if spread is None else (norm, spread):
        if per_unit.shape != (count,) or not per_unit.is_contiguous():
            raise ValueError(f"estimator takes a norm and a spread for each of {count} units, in one piece")
    scales = (projection_scale, rank), (decoder_scale, count)
    if len({t.dtype == torch.int8 for t in (projection, decoder)} | {s is not None for s, _ in scales}) > 1:
        raise ValueError("estimator takes two weights of int8, each with a scale, or two without")
    for scale, size in scales:
        if scale is not None and (
            scale.dtype != torch.float32 or scale.shape != (size,) or not scale.is_contiguous()
        ):
            raise ValueError(f"estimator takes a float32 scale for each of {size} rows, in one piece")
    config = config or default_config(x, rank)
    early = config.early and not config.fused
    parts = triton.cdiv(inputs, config.block_k)
    blocks = triton.cdiv(count, config.block)
    found = empty(x, rows, count, config.block)
    z = None
    if not config.fused:
        z = x.new_empty(parts, rows, rank // 4 * 4 + 4, dtype=torch.float32)
        wrap_triton(_project)[(rank + 1, parts)](
            x, projection, z, inputs, x.stride(0), projection.stride(0),
            ROWS=rows, RANK=rank, BLOCK_B=triton.next_power_of_2(rows), BLOCK_K=config.block_k, EARLY=early,
        )  # fmt: skip
    wrap_triton(_estimate)[(blocks,)](
        x, projection, decoder, projection_scale, decoder_scale, spread, norm, gate, z,
        found.units, found.counts, found.rows, found.arrived,
        inputs, count, blocks, x.stride(0), projection.stride(0), decoder.stride(0),
        ROWS=rows, RANK=rank, PARTS=parts, BLOCK_B=triton.next_power_of_2(rows), BLOCK_R=triton.next_power_of_2(rank),
        BLOCK=config.block, BLOCK_K=config.block_k, EARLY=early,
        num_warps=config.num_warps, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return found


def scores(
    x: Tensor,
    projection: Tensor,
    decoder: Tensor,
    norm: Tensor,
    spread: Tensor | None,
    projection_scale: Tensor | None = None,
    decoder_scale: Tensor | None = None,
) -> Tensor:
    """The truth: what is compared with the threshold, [B, I], in float64; `lists.reference` makes lists of it."""
    wide = x.double()
    low = F.linear(wide, projection.double())
    low = low if projection_scale is None else low * projection_scale.double()
    estimate = F.linear(low, decoder.double())
    estimate = estimate if decoder_scale is None else estimate * decoder_scale.double()
    if spread is not None:
        doubt = spread.double() * wide.square().mean(1, keepdim=True).sqrt()
        estimate = (estimate.square() + doubt.square()).sqrt()
    return estimate.abs() * norm.double()


@triton.jit
def _project(
    x, projection, z, inputs, stride_x, stride_p,
    ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # z [PARTS, ROWS, RANK + 1, to a multiple of 4]: products with the projection, and then the row's with itself.
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    r = tl.program_id(0)
    part = tl.program_id(1)
    b = tl.arange(0, BLOCK_B)
    k = part * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (b < ROWS)[:, None] & (k < inputs)[None, :]
    value = tl.load(x + b[:, None].to(tl.int64) * stride_x + k[None, :], mask=inside, other=0.0)
    row = tl.load(projection + tl.minimum(r, RANK - 1) * stride_p + k, mask=k < inputs, other=0.0)
    value = value.to(tl.float32)
    total = tl.sum(value * tl.where(r == RANK, value, row.to(tl.float32)[None, :]), 1)
    tl.store(z + (part * ROWS + b) * (RANK // 4 * 4 + 4) + r, total, mask=b < ROWS)


@triton.jit
def _estimate(
    x, projection, decoder, projection_scale, decoder_scale, spread, norm, gate, z, units, counts, rows, arrived,
    inputs, count, blocks, stride_x, stride_p, stride_d,
    ROWS: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    unit = block * BLOCK + tl.arange(0, BLOCK)
    inside = unit < count
    r = tl.arange(0, BLOCK_R)
    within = inside[:, None] & (r < RANK)[None, :]
    table = tl.load(decoder + unit[:, None].to(tl.int64) * stride_d + r[None, :], mask=within, other=0.0)
    worth = tl.load(norm + unit, mask=inside, other=0.0)
    if spread is not None:
        open_part = tl.load(spread + unit, mask=inside, other=0.0)
    if projection_scale is not None:
        low_scale = tl.load(projection_scale + r, mask=r < RANK, other=0.0)
        unit_scale = tl.load(decoder_scale + unit, mask=inside, other=0.0)
    threshold = tl.load(gate)
    tl.debug_barrier()  # all of these loads are under way before one is waited for: ptxas would save registers instead
    if EARLY:
        tl.extra.cuda.gdc_wait()
    lows, powers = (), ()
    for b in tl.static_range(ROWS):
        if z is None:
            line = x + tl.full((), b, tl.int64) * stride_x
            low, power = _low(line, projection, inputs, stride_p, RANK, BLOCK_R, BLOCK_K)
        else:
            low = tl.zeros((BLOCK_R,), tl.float32)
            power = 0.0
            for part in tl.static_range(PARTS):
                at = z + (part * ROWS + b) * (RANK // 4 * 4 + 4)
                low += tl.load(at + r, mask=r < RANK, other=0.0)
                power += tl.load(at + RANK)
        if projection_scale is not None:
            low *= low_scale
        lows += (low,)  # type: ignore[assignment]
        powers += (power,)  # type: ignore[assignment]
    kept_by = tl.zeros((BLOCK,), tl.int32)  # a bit for each row
    for b in tl.static_range(ROWS):
        score = tl.sum(table.to(tl.float32) * lows[b][None, :], 1)
        if decoder_scale is not None:
            score *= unit_scale
        if spread is not None:
            doubt = open_part * tl.sqrt(powers[b] / inputs)
            score = tl.sqrt(score * score + doubt * doubt)
        # A score is never negative, so a negative threshold keeps everything; neither is NaN <= anything.
        kept_by |= tl.where(tl.abs(score * worth) <= threshold, 0, inside.to(tl.int32) << b)
    list_units(kept_by, unit, units, counts, rows, arrived, block, blocks, ROWS, BLOCK_B, BLOCK)


@triton.jit
def _low(x, projection, inputs, stride_p, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """(projection @ x, x . x) of one row; sums over K are left to the end, each thread has its own."""
    r = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    wide = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for first in tl.range(0, inputs, BLOCK_K, num_stages=3):
        inside = first + k < inputs
        value = tl.load(x + first + k, mask=inside, other=0.0).to(tl.float32)
        at = projection + r[:, None] * stride_p + first + k[None, :]
        w = tl.load(at, mask=(r < RANK)[:, None] & inside[None, :], other=0.0)
        wide += value[None, :] * w.to(tl.float32)
        square += value * value
    return tl.sum(wide, 1), tl.sum(square, 0)


def _ahead(
    dtype: str, rows: int, rank: int, config: Config, *, spread: bool = True, int8: bool = False
) -> Ahead:
    constants: dict[str, Any] = {"ROWS": rows, "RANK": rank, "BLOCK_B": rows, "BLOCK_R": rank}
    constants |= {
        "PARTS": 2 if rows == 1 else 4,
        "BLOCK": config.block,
        "BLOCK_K": config.block_k,
        "EARLY": False,
    }
    absent = dict.fromkeys((*(() if spread else ("spread",)), *(("z",) if config.fused else ())))
    scales = ("projection_scale", "decoder_scale")
    signature = dict.fromkeys(("x", "projection", "decoder"), f"*{dtype}")
    if int8:
        signature |= {"projection": "*i8", "decoder": "*i8"} | dict.fromkeys(scales, "*fp32")
    signature |= dict.fromkeys(("norm", "gate", "spread", "z"), "*fp32")
    signature |= dict.fromkeys(("units", "counts", "rows", "arrived"), "*i32")
    signature |= dict.fromkeys(("inputs", "count", "blocks", "stride_x", "stride_p", "stride_d"), "i32:16")
    signature = {name: kind for name, kind in signature.items() if name not in absent}
    constants |= {} if int8 else dict.fromkeys(scales)
    kind = (dtype, "i8") if int8 else (dtype,)
    name = f"estimator[{', '.join((*kind, f'{rows} rows', f'rank {rank}', *(f'no {a}' for a in absent)))}]"
    return Ahead(name, _estimate, signature, constants | absent, config.num_warps)


def _ahead_project(dtype: str, rows: int, *, int8: bool = False) -> Ahead:
    block_k = min(2048, 8192 // rows)
    constants = {"ROWS": rows, "RANK": 64, "BLOCK_B": rows, "BLOCK_K": block_k, "EARLY": False}
    signature = {"x": f"*{dtype}", "projection": "*i8" if int8 else f"*{dtype}", "z": "*fp32"}
    signature |= dict.fromkeys(("inputs", "stride_x", "stride_p"), "i32:16")
    name = f"estimator, projection[{dtype}{', i8' if int8 else ''}, {rows} rows]"
    return Ahead(name, _project, signature, constants)


AHEAD = (
    *(_ahead_project(dtype, rows) for dtype in ("bf16", "fp16", "fp32") for rows in (1, 8)),
    *(_ahead(dtype, rows, 64, Config()) for dtype in ("bf16", "fp16", "fp32") for rows in (1, 8)),
    *(_ahead("bf16", rows, 128, Config(num_warps=8)) for rows in (1, 8)),
    *(_ahead(dtype, 1, 64, Config(block_k=64, fused=True)) for dtype in ("bf16", "fp16", "fp32")),
    _ahead("bf16", 1, 64, Config(), spread=False),
    _ahead_project("bf16", 1, int8=True),
    _ahead("bf16", 1, 64, Config(), int8=True),
    _ahead("bf16", 1, 64, Config(block_k=64, fused=True), int8=True),
)
