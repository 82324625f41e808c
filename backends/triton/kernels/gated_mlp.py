"""MLP of a decoded token that computes only the neurons that matter, in two launches.

    gated_mlp(x, gate_weight, up_weight, down_weight, norms, thresholds, chosen=None) -> down(h)
    h = activation(gate(x)) * up(x) for the neurons that are kept

x [B, K], 1 <= B <= 8; gate_weight, up_weight [I, K] by row; down_weight [N, I] by input (strides (1, N)), all of x's
dtype or int8, with scales float32 [2, I] (of gate and up) and down_scale float32 [N]; norms
float32 [2, I]; thresholds float32 [2]; chosen: the lists (`lists.py`) that an estimator left, or None for all neurons
-> [B, N] of x's dtype; fp16, bf16 or fp32, accumulated in fp32.

A neuron is dropped where |activation(gate)| * norms[0] <= thresholds[0] in every row, before its row of `up` is read,
or where |h| * norms[1] <= thresholds[1] or h is zero, before its row of `down` is; one that is not chosen costs nothing
at all. NaN is kept. Guards are not asked here: those of the chosen are in their counts (`lists.guarded`).

The first launch has the gate of some neurons when it decides for them, and the last of a block's programs to arrive
lists what `down` has to read. The second must wait for all of h, because each output is a sum over all neurons: fewer
launches than two would take a barrier across the whole card.
Source: CATS (Lee et al. 2024); the last gate after Deja Vu (Liu et al. 2023), with h known instead of predicted.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.activate import KNOWN, activate
from srrc.backends.triton.kernels.lists import Kept, counting, empty, list_units
from srrc.backends.triton.kernels.sparse_linear import Config as LinearConfig
from srrc.backends.triton.kernels.sparse_linear import sparse_linear
from srrc.ops import activation as activations
from srrc.ops.gate import MAX_ROWS


@dataclass(frozen=True)
class Config:
    """How the first launch is cut: neurons of a program, inputs at once, Triton's own, and neurons of a list."""

    block_i: int
    block_k: int
    num_warps: int
    num_stages: int = 2
    block: int = 256


def configs(rows: int) -> tuple[Config, ...]:
    """The space worth searching."""
    if rows == 1:
        shapes = ((4, 1024, 4), (8, 512, 4), (8, 1024, 8), (16, 512, 8), (4, 512, 2))
        return tuple(Config(*shape) for shape in shapes)
    return (Config(16, 256, 4, 3), Config(32, 128, 4, 4), Config(32, 256, 8, 3))


def default_config(rows: int) -> Config:
    """What is good where nothing was measured."""
    return Config(8, 512, 4) if rows == 1 else Config(16, 256, 4, 3)


def gated_mlp(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    norms: Tensor,
    thresholds: Tensor,
    chosen: Kept | None = None,
    *,
    activation: str = "silu",
    scales: Tensor | None = None,
    down_scale: Tensor | None = None,
    config: Config | None = None,
    down_config: LinearConfig | None = None,
) -> Tensor:
    """Launch both."""
    hidden, kept = gated_hidden(
        x,
        gate_weight,
        up_weight,
        norms,
        thresholds,
        chosen,
        activation=activation,
        scales=scales,
        config=config,
    )
    return sparse_linear(hidden, kept, down_weight, down_scale, config=down_config)


def gated_hidden(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    norms: Tensor,
    thresholds: Tensor,
    chosen: Kept | None = None,
    *,
    activation: str = "silu",
    scales: Tensor | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Kept]:
    """The first launch: h [B, I] of x's dtype, which holds nothing of sense where a neuron is not kept, and the lists.

    Raises ValueError for what the kernel does not take.
    """
    rows, inputs = x.shape
    neurons = gate_weight.shape[0]
    if not 1 <= rows <= MAX_ROWS or activation not in KNOWN:
        raise ValueError(
            f"gated_hidden takes 1 to {MAX_ROWS} rows and one of {', '.join(KNOWN)}, not {rows} and {activation!r}"
        )
    if gate_weight.stride() != up_weight.stride() or gate_weight.stride(1) != 1 or x.stride(1) != 1:
        raise ValueError(
            f"gated_hidden takes weights by row, not strides {gate_weight.stride()} and {up_weight.stride()}"
        )
    if (gate_weight.dtype == torch.int8) != (scales is not None) or gate_weight.dtype != up_weight.dtype:
        raise ValueError("gated_hidden takes scales with weights of int8, and with no others")
    if chosen is not None and chosen.count != neurons:
        raise ValueError(f"the lists are of {chosen.count} units, the MLP has {neurons} neurons")
    config = config or default_config(rows)
    hidden = x.new_empty(rows, neurons)
    kept = empty(x, rows, neurons, config.block if chosen is None else chosen.block)
    blocks = len(kept.counts)
    arrived = torch.zeros_like(kept.counts) if chosen is None else counting(x, chosen, blocks)
    wrap_triton(_gated_hidden)[(blocks * (kept.block // config.block_i),)](
        x, gate_weight, up_weight, scales, norms, thresholds,
        None if chosen is None else chosen.units, None if chosen is None else chosen.counts,
        hidden, kept.units, kept.counts, kept.rows, kept.arrived, arrived,
        inputs, neurons, blocks, x.stride(0), gate_weight.stride(0),
        ROWS=rows, BLOCK_B=triton.next_power_of_2(rows), ACTIVATION=activation, BLOCK=kept.block,
        BLOCK_I=config.block_i, BLOCK_K=config.block_k, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return hidden, kept


def reference(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    norms: Tensor,
    thresholds: Tensor,
    chosen: Tensor | None = None,
    *,
    activation: str = "silu",
    scales: Tensor | None = None,
) -> Tensor:
    """The truth for `gated_hidden`, in float64: h, zero where a neuron is not kept. chosen: bool [I]."""
    wide = x.double()
    if scales is not None:
        gate_weight, up_weight = (
            gate_weight * scales[0, :, None].double(),
            up_weight * scales[1, :, None].double(),
        )
    acted = activations.lookup(activation).forward(F.linear(wide, gate_weight.double()))
    keep = ~(acted.abs() * norms[0] <= thresholds[0]).all(0)
    keep = keep if chosen is None else keep & chosen
    hidden = torch.where(keep, acted * F.linear(wide, up_weight.double()), 0.0)
    return torch.where(~(hidden.abs() * norms[1] <= thresholds[1]).all(0), hidden, 0.0).to(x.dtype)


@triton.jit(do_not_specialize=["blocks"])
def _gated_hidden(
    x, gate_weight, up_weight, scales, norms, thresholds, chosen, chosen_counts, hidden, units, counts, kept_rows,
    zeros, arrived, inputs, neurons, blocks, stride_x, stride_i,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    programs = BLOCK // BLOCK_I
    block = tl.program_id(0) // programs
    place = tl.program_id(0) % programs * BLOCK_I + tl.arange(0, BLOCK_I)
    count = tl.minimum(neurons - block * BLOCK, BLOCK)
    i = block * BLOCK + place
    if chosen is not None:
        count = tl.load(chosen_counts + block)
        i = tl.load(chosen + i)
    alive = place < count
    acted = row_products(x, gate_weight, i, alive, inputs, stride_x, stride_i, ROWS, BLOCK_I, BLOCK_K)
    if scales is not None:
        acted *= tl.load(scales + i, mask=alive, other=0.0)[None, :]
    acted = activate(acted, ACTIVATION)
    dropped = tl.abs(acted) * tl.load(norms + i, mask=alive, other=0.0)[None, :] <= tl.load(thresholds)
    if ROWS == 1:
        b = tl.zeros((1,), tl.int32)
    else:
        b = tl.arange(0, 16)
        dropped |= (b >= ROWS)[:, None]
    wanted = alive & (tl.min(dropped.to(tl.int32), 0) == 0)
    value = acted * row_products(x, up_weight, i, wanted, inputs, stride_x, stride_i, ROWS, BLOCK_I, BLOCK_K)
    if scales is not None:
        value *= tl.load(scales + neurons + i, mask=alive, other=0.0)[None, :]
    value = tl.where(wanted[None, :], value, 0.0).to(hidden.dtype.element_ty)
    tl.store(hidden + b[:, None] * neurons + i[None, :], value, mask=(b < ROWS)[:, None] & alive[None, :])
    tl.debug_barrier()  # every thread's part is written before one of them says so
    if tl.atomic_add(arrived + block, 1, sem="acq_rel") == programs - 1:
        tl.store(arrived + block, 0)
        lane = tl.arange(0, BLOCK)
        unit = block * BLOCK + lane
        if chosen is not None:
            unit = tl.load(chosen + unit)
        worth = tl.load(norms + neurons + unit, mask=lane < count, other=0.0)
        threshold = tl.load(thresholds + 1)
        kept_by = tl.zeros((BLOCK,), tl.int32)
        for row in tl.static_range(ROWS):
            found = tl.load(hidden + row * neurons + unit, mask=lane < count, other=0.0, cache_modifier=".cg")
            found = tl.abs(found.to(tl.float32))
            kept_by |= tl.where(
                (found * worth <= threshold) | (found == 0.0), 0, (lane < count).to(tl.int32) << row
            )
        list_units(kept_by, unit, units, counts, kept_rows, zeros, block, blocks, ROWS, BLOCK_B, BLOCK)


@triton.jit
def row_products(
    x, weight, i, alive, inputs, stride_x, stride_i,
    ROWS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products of x with the rows i of a weight that are alive: [1 or 16, BLOCK_I]."""
    k = tl.arange(0, BLOCK_K)
    row = weight + i[:, None].to(tl.int64) * stride_i
    inputs *= tl.max(alive.to(tl.int32), 0)  # nothing alive: nothing to do
    if ROWS == 1:
        wide = tl.zeros((BLOCK_I, BLOCK_K), tl.float32)
        for start in range(0, inputs, BLOCK_K):
            within = k + start < inputs
            value = tl.load(x + start + k, mask=within, other=0.0)
            w = tl.load(row + start + k[None, :], mask=alive[:, None] & within[None, :], other=0.0)
            wide += value.to(tl.float32)[None, :] * w.to(tl.float32)
        total = tl.sum(wide, 1)[None, :]
    else:
        b = tl.arange(0, 16)
        total = tl.zeros((16, BLOCK_I), tl.float32)
        for start in range(0, inputs, BLOCK_K):
            within = k + start < inputs
            value = tl.load(
                x + b[:, None] * stride_x + start + k[None, :],
                mask=(b < ROWS)[:, None] & within[None, :],
                other=0.0,
            )
            w = tl.load(row + start + k[None, :], mask=alive[:, None] & within[None, :], other=0.0)
            total = tl.dot(value, tl.trans(w.to(value.dtype)), total, input_precision="ieee")
    return total


def _ahead(dtype: str, rows: int, *, chosen: bool, eight: bool = False) -> Ahead:
    signature = dict.fromkeys(("x", "hidden"), f"*{dtype}")
    signature |= dict.fromkeys(("gate_weight", "up_weight"), "*i8" if eight else f"*{dtype}")
    signature |= {"scales": "*fp32"} if eight else {}
    signature |= dict.fromkeys(("norms", "thresholds"), "*fp32")
    signature |= dict.fromkeys(("units", "counts", "kept_rows", "zeros", "arrived"), "*i32")
    signature |= dict.fromkeys(("chosen", "chosen_counts"), "*i32") if chosen else {}
    signature |= dict.fromkeys(("inputs", "neurons", "stride_x", "stride_i"), "i32:16") | {"blocks": "i32"}
    config = default_config(rows)
    constants = {"ROWS": rows, "BLOCK_B": rows, "ACTIVATION": "silu", "BLOCK": config.block}
    constants |= {"BLOCK_I": config.block_i, "BLOCK_K": config.block_k}
    constants |= {} if chosen else {"chosen": None, "chosen_counts": None}
    constants |= {} if eight else {"scales": None}
    name = f"gated_hidden[{dtype}, {rows} rows{', chosen' if chosen else ''}{', int8' if eight else ''}]"
    return Ahead(name, _gated_hidden, signature, constants, config.num_warps, config.num_stages)


AHEAD = (
    *(_ahead(dtype, rows, chosen=False) for dtype in ("bf16", "fp16", "fp32") for rows in (1, 8)),
    *(_ahead("bf16", rows, chosen=True) for rows in (1, 8)),
    *(_ahead("bf16", rows, chosen=True, eight=True) for rows in (1, 8)),
)
