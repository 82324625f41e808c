"""The second half of a gated MLP's hidden values: rows of `up` for the neurons that are kept, and what `down` reads.

    listed_rows(x, acted, kept, weight, norm, gate, bias=None) -> (h, Kept)
    h = acted * (weight @ x + bias) for the neurons that are listed, 0 for the others

x [B, K], 1 <= B <= 8; acted [B, I], the activation of the gate; kept: lists of I neurons (`lists.py`); weight [I, K] by
row, of x's dtype or int8 with scale float32 [I]; bias [I]; norm float32 [I]; gate float32 [2, 2]: (threshold, min_kept)
of the lists, for their guard, and of h; emphasis float32 [B] or None, of h -> h [B, I] of x's dtype, and lists of the
neurons of h that are kept: |h| * norm, times the row's emphasis, exceeds the threshold; the guard's fraction is of
those that were listed. fp16, bf16 or fp32, accumulated in fp32. counters int64: three of them, from the `counter`-th
on, are told what the lists kept.

The rows of a block of neurons are its programs' to compute; the last to arrive lists what is left of them.
Source: CATS (Lee et al. 2024).
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.gated_mlp import Config, default_config, row_products
from srrc.backends.triton.kernels.lists import (
    Kept,
    count_kept,
    counting,
    empty,
    guard_failed,
    guarded,
    list_units,
)
from srrc.ops.gate import MAX_ROWS


def listed_rows(
    x: Tensor,
    acted: Tensor,
    kept: Kept,
    weight: Tensor,
    norm: Tensor,
    gate: Tensor,
    bias: Tensor | None = None,
    emphasis: Tensor | None = None,
    counters: Tensor | None = None,
    *,
    counter: int = 0,
    scale: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Kept]:
    """Launch. Raises ValueError for what the kernel does not take."""
    rows, inputs = x.shape
    neurons = len(weight)
    if not 1 <= rows <= MAX_ROWS or weight.stride(1) != 1 or x.stride(1) != 1 or kept.count != neurons:
        raise ValueError(
            f"listed_rows takes 1 to {MAX_ROWS} rows, lists of {neurons} neurons and a weight by row, not"
            f" {tuple(x.shape)}, lists of {kept.count} and strides {weight.stride()}"
        )
    if acted.shape != (rows, neurons) or not acted.is_contiguous() or gate.shape != (2, 2):
        raise ValueError(
            f"listed_rows takes {rows} rows of {neurons} activations in one piece, and two gate records"
        )
    if (weight.dtype == torch.int8) != (scale is not None):
        raise ValueError("listed_rows takes a scale with a weight of int8, and with no other")
    config = config or default_config(rows)
    if kept.block % config.block_i:
        raise ValueError(f"lists in blocks of {kept.block} cannot be computed {config.block_i} at a time")
    hidden = torch.empty_like(acted)
    blocks = len(kept.counts)
    left = empty(x, rows, neurons, kept.block)
    offered = torch.empty_like(kept.counts)
    wrap_triton(_listed_rows)[(blocks * (kept.block // config.block_i),)](
        x, acted, weight, scale, bias, norm, gate, emphasis, kept.units, kept.counts, kept.rows, hidden,
        left.units, left.counts, left.rows, left.arrived, offered, counting(x, kept, blocks), counters, counter,
        inputs, neurons, blocks, x.stride(0), weight.stride(0), gate.stride(0),
        ROWS=rows, BLOCK_B=triton.next_power_of_2(rows), BLOCK=kept.block, BLOCKS=triton.next_power_of_2(blocks),
        BLOCK_I=config.block_i, BLOCK_K=config.block_k, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return hidden, replace(left, offered=offered)


def reference(
    x: Tensor,
    acted: Tensor,
    kept: Kept,
    weight: Tensor,
    gate: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The truth, in float64: h rounded to x's dtype, and which neurons are listed, bool [I]."""
    alive = replace(kept, counts=guarded(kept, gate[0])).mask()
    weight = weight.double() if scale is None else weight * scale.double()[:, None]
    inner = F.linear(x.double(), weight, None if bias is None else bias.double())
    return torch.where(alive, acted.double() * inner, 0.0).to(x.dtype), alive


@triton.jit(do_not_specialize=["blocks"])
def _listed_rows(
    x, acted, weight, scale, bias, norm, gate, emphasis, units, counts, kept_rows, hidden,
    left, left_counts, left_rows, zeros, offered, arrived, counters, counter,
    inputs, neurons, blocks, stride_x, stride_i, stride_g,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    programs = BLOCK // BLOCK_I
    block = tl.program_id(0) // programs
    place = tl.program_id(0) % programs * BLOCK_I + tl.arange(0, BLOCK_I)
    whole = tl.minimum(neurons - block * BLOCK, BLOCK)
    failed = guard_failed(kept_rows, gate, None, neurons, blocks, ROWS, BLOCKS)
    count = tl.where(failed > 0, whole, tl.load(counts + block))
    if counters is not None:
        if tl.program_id(0) == 0:
            count_kept(counters + counter, counts, None, failed, neurons, blocks, ROWS, BLOCKS)
    i = tl.load(units + block * BLOCK + place)
    there = place < whole
    alive = place < count
    inner = row_products(x, weight, i, alive, inputs, stride_x, stride_i, ROWS, BLOCK_I, BLOCK_K)
    if scale is not None:
        inner *= tl.load(scale + i, mask=alive, other=0.0)[None, :]
    if bias is not None:
        inner += tl.load(bias + i, mask=alive, other=0.0).to(tl.float32)[None, :]
    if ROWS == 1:
        b = tl.zeros((1,), tl.int32)
    else:
        b = tl.arange(0, 16)
    at = b[:, None] * neurons + i[None, :]
    mine = (b < ROWS)[:, None] & alive[None, :]
    value = inner * tl.load(acted + at, mask=mine, other=0.0).to(tl.float32)
    value = tl.where(mine, value, 0.0).to(hidden.dtype.element_ty)
    tl.store(hidden + at, value, mask=(b < ROWS)[:, None] & there[None, :])
    tl.debug_barrier()  # every thread's part is written before one of them says so
    if tl.atomic_add(arrived + block, 1, sem="acq_rel") == programs - 1:
        tl.store(arrived + block, 0)
        tl.store(offered + block, count)
        lane = tl.arange(0, BLOCK)
        unit = tl.load(units + block * BLOCK + lane)
        # Read back: torch takes what an address comes from, through other functions, for written to: the gate too.
        tl.debug_barrier()
        listed = lane < tl.load(offered + block)
        worth = tl.load(norm + unit, mask=listed, other=0.0)
        threshold = tl.load(gate + stride_g)
        kept_by = tl.zeros((BLOCK,), tl.int32)
        for row in tl.static_range(ROWS):
            found = tl.load(hidden + row * neurons + unit, mask=listed, other=0.0, cache_modifier=".cg")
            score = tl.abs(found.to(tl.float32)) * worth
            if emphasis is not None:
                score *= tl.load(emphasis + row)
            kept_by |= tl.where(score <= threshold, 0, listed.to(tl.int32) << row)
        list_units(kept_by, unit, left, left_counts, left_rows, zeros, block, blocks, ROWS, BLOCK_B, BLOCK)


def _ahead(dtype: str, rows: int, *, eight: bool = False) -> Ahead:
    signature = dict.fromkeys(("x", "acted", "weight", "hidden"), f"*{dtype}") | dict.fromkeys(
        ("norm", "gate"), "*fp32"
    )
    lists = (
        "units",
        "counts",
        "kept_rows",
        "left",
        "left_counts",
        "left_rows",
        "zeros",
        "offered",
        "arrived",
    )
    signature |= dict.fromkeys(lists, "*i32") | {"counters": "*i64", "counter": "i32"}
    signature |= dict.fromkeys(("inputs", "neurons", "stride_x", "stride_i"), "i32:16")
    signature |= dict.fromkeys(("blocks", "stride_g"), "i32")
    signature |= {"weight": "*i8", "scale": "*fp32"} if eight else {}
    config = default_config(rows)
    constants = {"ROWS": rows, "BLOCK_B": rows, "BLOCK": 256, "BLOCKS": 64, "bias": None, "emphasis": None}
    constants |= {"BLOCK_I": config.block_i, "BLOCK_K": config.block_k}
    constants |= {} if eight else {"scale": None}
    name = f"listed_rows[{dtype}, {rows} rows{', int8' if eight else ''}]"
    return Ahead(name, _listed_rows, signature, constants, config.num_warps, config.num_stages)


AHEAD = (
    *(_ahead(dtype, rows) for dtype in ("bf16", "fp16", "fp32") for rows in (1, 8)),
    *(_ahead("bf16", rows, eight=True) for rows in (1, 8)),
)
