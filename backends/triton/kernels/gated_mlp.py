"""MLP of a decoded token that computes only the neurons that matter, in two launches.

    gated_mlp(x, gate_weight, up_weight, down_weight, norms, thresholds, chosen=None) -> down(h)
    h = activation(gate(x)) * up(x) for the neurons that are kept, else 0

x [B, K], 1 <= B <= 16; gate_weight, up_weight [I, K] by row; down_weight [N, I] by input (strides (1, N)); norms
float32 [2, I]; thresholds float32 [2]; chosen bool [I] or None, what an estimator left -> [B, N] of x's dtype; fp16,
bf16 or fp32, accumulated in fp32.

A neuron is dropped where |activation(gate)| * norms[0] <= thresholds[0] in every row, before its row of `up` is read,
or where |h| * norms[1] <= thresholds[1], before its row of `down` is; one that is not chosen costs nothing at all. NaN
is kept. The first launch has the gate of a block of neurons when it decides for them; the second must wait for all of
h, because each output is a sum over all neurons: fewer launches than two would take a barrier across the whole card.
Source: CATS (Lee et al. 2024); the last gate after Deja Vu (Liu et al. 2023), with h known instead of predicted.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.sparse_linear import MAX_ROWS, Workspace, sparse_linear
from srrc.backends.triton.kernels.sparse_linear import Config as LinearConfig
from srrc.ops import activation as activations

KNOWN = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid")


@dataclass(frozen=True)
class Config:
    """How the first launch is cut: neurons of a program, inputs at once, and Triton's own."""

    block_i: int
    block_k: int
    num_warps: int
    num_stages: int = 2


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
    chosen: Tensor | None = None,
    *,
    activation: str = "silu",
    config: Config | None = None,
    down_config: LinearConfig | None = None,
    space: Workspace | None = None,
) -> Tensor:
    """Launch both. Raises ValueError for what the kernels do not take."""
    hidden = gated_hidden(
        x, gate_weight, up_weight, norms, thresholds, chosen, activation=activation, config=config
    )
    return sparse_linear(hidden, down_weight, config=down_config, space=space)


def gated_hidden(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    norms: Tensor,
    thresholds: Tensor,
    chosen: Tensor | None = None,
    *,
    activation: str = "silu",
    config: Config | None = None,
) -> Tensor:
    """The first launch: h [B, I] of x's dtype, zero where a neuron is dropped."""
    rows, inputs = x.shape
    neurons = gate_weight.shape[0]
    if not 1 <= rows <= MAX_ROWS or activation not in KNOWN:
        raise ValueError(
            f"gated_hidden takes 1 to {MAX_ROWS} rows and one of {', '.join(KNOWN)}, not {rows} and"
            f" {activation!r}"
        )
    if gate_weight.stride() != up_weight.stride() or gate_weight.stride(1) != 1 or x.stride(1) != 1:
        raise ValueError(
            f"gated_hidden takes weights by row, not strides {gate_weight.stride()} and {up_weight.stride()}"
        )
    config = config or default_config(rows)
    hidden = x.new_empty(rows, neurons)
    _gated_hidden[(triton.cdiv(neurons, config.block_i),)](
        x, gate_weight, up_weight, norms, thresholds, None if chosen is None else chosen.view(torch.int8), hidden,
        inputs, neurons, x.stride(0), gate_weight.stride(0),
        ROWS=rows, ACTIVATION=activation, BLOCK_I=config.block_i, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return hidden


def reference(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    norms: Tensor,
    thresholds: Tensor,
    chosen: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """The truth for `gated_hidden`, in float64."""
    wide = x.double()
    acted = activations.lookup(activation).forward(F.linear(wide, gate_weight.double()))
    keep = ~(acted.abs() * norms[0] <= thresholds[0]).all(0)
    keep = keep if chosen is None else keep & chosen
    hidden = torch.where(keep, acted * F.linear(wide, up_weight.double()), 0.0)
    return torch.where(~(hidden.abs() * norms[1] <= thresholds[1]).all(0), hidden, 0.0).to(x.dtype)


@triton.jit
def _gated_hidden(
    x, gate_weight, up_weight, norms, thresholds, chosen, hidden,
    inputs, neurons, stride_x, stride_i,
    ROWS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = i < neurons
    alive = inside
    if chosen is not None:
        alive &= tl.load(chosen + i, mask=inside, other=0) != 0
    acted = _activate(
        _rows(x, gate_weight, i, alive, inputs, stride_x, stride_i, ROWS, BLOCK_I, BLOCK_K), ACTIVATION
    )
    worth = tl.load(norms + i, mask=inside, other=0.0)[None, :]
    dropped = tl.abs(acted) * worth <= tl.load(thresholds)
    if ROWS == 1:
        b = tl.zeros((1,), tl.int32)
    else:
        b = tl.arange(0, 16)
        dropped |= (b >= ROWS)[:, None]
    alive &= tl.min(dropped.to(tl.int32), 0) == 0
    value = acted * _rows(x, up_weight, i, alive, inputs, stride_x, stride_i, ROWS, BLOCK_I, BLOCK_K)
    worth = tl.load(norms + neurons + i, mask=inside, other=0.0)[None, :]
    dropped = tl.abs(value) * worth <= tl.load(thresholds + 1)
    dropped |= (b >= ROWS)[:, None]
    alive &= tl.min(dropped.to(tl.int32), 0) == 0
    value = tl.where(alive[None, :], value, 0.0)
    mine = (b < ROWS)[:, None] & inside[None, :]
    tl.store(hidden + b[:, None] * neurons + i[None, :], value.to(hidden.dtype.element_ty), mask=mine)


@triton.jit
def _rows(
    x, weight, i, alive, inputs, stride_x, stride_i,
    ROWS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products of x with the rows i of a weight that are alive: [1 or 16, BLOCK_I]."""
    k = tl.arange(0, BLOCK_K)
    row = weight + i[:, None].to(tl.int64) * stride_i
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
            total = tl.dot(value, tl.trans(w), total, input_precision="ieee")
    return total


@triton.jit
def _activate(x, NAME: tl.constexpr):
    if NAME == "silu":
        y = x * tl.sigmoid(x)
    elif NAME == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = x * tl.sigmoid(
            1.5957691216057308 * (x + 0.044715 * x * x * x)
        )  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    elif NAME == "sigmoid":
        y = tl.sigmoid(x)
    else:
        y = tl.where(x < 0.0, 0.0, x)
        y = y * y if NAME == "relu2" else y
    return y


def _ahead(dtype: str, rows: int) -> Ahead:
    pointers = {"x": dtype, "gate_weight": dtype, "up_weight": dtype, "norms": "fp32", "thresholds": "fp32"}
    signature = {name: f"*{kind}" for name, kind in (pointers | {"chosen": "i8", "hidden": dtype}).items()}
    signature |= dict.fromkeys(("inputs", "neurons", "stride_x", "stride_i"), "i32:16")
    config = default_config(rows)
    constants = {"ROWS": rows, "ACTIVATION": "silu", "BLOCK_I": config.block_i, "BLOCK_K": config.block_k}
    name = f"gated_hidden[{dtype}, {rows} rows]"
    return Ahead(name, _gated_hidden, signature, constants, config.num_warps, config.num_stages)


AHEAD = tuple(_ahead(dtype, rows) for dtype in ("bf16", "fp16", "fp32") for rows in (1, 8))
