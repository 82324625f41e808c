"""Which units of a row are worth reading the weights of, listed block by block, along with what comes before.

    select(x, norm, gate) -> Kept
    select_norm(stream, added, weight, norm, gate) -> (stream + added, x, Kept)    x its RMS norm times weight
    select_act(inner, norm, gate, up=None) -> (x, Kept)                            x = activation(inner), times up

x, stream, added, inner, up [B, K], 1 <= B <= 8; weight [K]; norm float32 [K]; gate float32 [2]: (threshold, min_kept);
fp16, bf16 or fp32. A unit's score is |x| * norm, times the row's emphasis, float32 [B], where there is one: kept unless
<= threshold, as in srr::channel_linear and srr::neuron_mlp.
A program has a block of units. For an RMS norm it reads whole rows, which lie in L2: that costs it less than another
launch would.
Source: TEAL (Liu et al. 2024), weighted as in Wanda (Sun et al. 2023).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.activate import KNOWN, activate
from srrc.backends.triton.kernels.lists import Kept, empty, list_units
from srrc.ops import activation as activations
from srrc.ops.gate import MAX_ROWS


def select(
    x: Tensor, norm: Tensor, gate: Tensor, emphasis: Tensor | None = None, *, block: int = 256
) -> Kept:
    """Launch on x as it is. Raises ValueError for what the kernel does not take."""
    kept = _prepare(x, norm, block)
    _launch(x, norm, gate, kept, "plain", emphasis=emphasis)
    return kept


def select_norm(
    stream: Tensor,
    added: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    gate: Tensor,
    *,
    epsilon: float,
    block: int = 256,
) -> tuple[Tensor, Tensor, Kept]:
    """Launch on an RMS norm: the new stream, its norm, and what of that is kept."""
    kept = _prepare(stream, norm, block)
    if not (stream.is_contiguous() and added.is_contiguous()):
        raise ValueError("select_norm takes a stream and what is added to it in one piece")
    total, x = torch.empty_like(stream), torch.empty_like(stream)
    _launch(stream, norm, gate, kept, "norm", added=added, weight=weight, total=total, out=x, epsilon=epsilon)
    return total, x, kept


def select_act(
    inner: Tensor,
    norm: Tensor,
    gate: Tensor,
    up: Tensor | None = None,
    emphasis: Tensor | None = None,
    *,
    activation: str = "silu",
    block: int = 256,
) -> tuple[Tensor, Kept]:
    """Launch on an MLP's hidden values before their activation; gated ones have an `up`."""
    kept = _prepare(inner, norm, block)
    if activation not in KNOWN or (up is not None and up.stride() != inner.stride()):
        raise ValueError(
            f"select_act takes one of {', '.join(KNOWN)}, not {activation!r}, and an up like inner"
        )
    x = inner.new_empty(inner.shape)
    _launch(inner, norm, gate, kept, "act", added=up, out=x, emphasis=emphasis, activation=activation)
    return x, kept


def reference(x: Tensor, norm: Tensor, emphasis: Tensor | None = None) -> Tensor:
    """The truth: the scores that `lists.reference` makes lists of."""
    score = x.abs().float() * norm
    return score if emphasis is None else score * emphasis[:, None]


def normalised(stream: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """The truth for `select_norm`: an RMS norm in float64, rounded to the stream's dtype."""
    wide = stream.double()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide if weight is None else wide * weight.double()).to(stream.dtype)


def acted(inner: Tensor, up: Tensor | None = None, activation: str = "silu") -> Tensor:
    """The truth for `select_act`, in float64, rounded to its dtype."""
    wide = activations.lookup(activation).forward(inner.double())
    return (wide if up is None else wide * up.double()).to(inner.dtype)


def _prepare(x: Tensor, norm: Tensor, block: int) -> Kept:
    if not 1 <= len(x) <= MAX_ROWS or x.stride(-1) != 1 or norm.shape != x.shape[1:]:
        raise ValueError(
            f"select takes 1 to {MAX_ROWS} rows, each in one piece, and a norm for each of their {x.shape[1]} units,"
            f" not {tuple(x.shape)} with strides {x.stride()} and {tuple(norm.shape)}"
        )
    return empty(x, len(x), x.shape[1], block)


def _launch(
    x: Tensor,
    norm: Tensor,
    gate: Tensor,
    kept: Kept,
    kind: str,
    *,
    added: Tensor | None = None,
    weight: Tensor | None = None,
    emphasis: Tensor | None = None,
    total: Tensor | None = None,
    out: Tensor | None = None,
    epsilon: float = 0.0,
    activation: str = "",
) -> None:
    rows = len(x)
    wrap_triton(_select)[(len(kept.counts),)](
        x, added, weight, norm, gate, emphasis, total, out, kept.units, kept.counts, kept.rows, kept.arrived,
        kept.count, len(kept.counts), x.stride(0), epsilon,
        ROWS=rows, BLOCK_B=triton.next_power_of_2(rows), BLOCK=kept.block,
        WHOLE=triton.next_power_of_2(kept.count) if kind == "norm" else 1, KIND=kind, ACTIVATION=activation,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _select(
    x, added, weight, norm, gate, emphasis, total, out, units, counts, rows, arrived, count, blocks, stride, epsilon,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    k = block * BLOCK + tl.arange(0, BLOCK)
    inside = k < count
    worth = tl.load(norm + k, mask=inside, other=0.0)
    threshold = tl.load(gate)
    kept_by = tl.zeros((BLOCK,), tl.int32)
    for b in tl.static_range(ROWS):
        value = tl.load(x + b * stride + k, mask=inside, other=0.0).to(tl.float32)
        if KIND == "act":
            value = activate(value, ACTIVATION)
            if added is not None:
                value *= tl.load(added + b * stride + k, mask=inside, other=0.0).to(tl.float32)
        if KIND == "norm":
            each = tl.arange(0, WHOLE)
            row = tl.load(x + b * stride + each, mask=each < count, other=0.0).to(tl.float32)
            row += tl.load(added + b * count + each, mask=each < count, other=0.0).to(tl.float32)
            row = row.to(x.dtype.element_ty).to(tl.float32)
            value += tl.load(added + b * count + k, mask=inside, other=0.0).to(tl.float32)
            value = value.to(x.dtype.element_ty).to(tl.float32)
            tl.store(total + b * count + k, value.to(x.dtype.element_ty), mask=inside)
            value *= tl.rsqrt(tl.sum(row * row, 0) / count + epsilon)
            if weight is not None:
                value *= tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
        if KIND != "plain":
            rounded = value.to(x.dtype.element_ty)
            tl.store(out + b * count + k, rounded, mask=inside)
            value = rounded.to(tl.float32)
        score = tl.abs(value) * worth
        if emphasis is not None:
            score *= tl.load(emphasis + b)
        # A score is never negative, so a negative threshold keeps everything; nor is NaN <= anything.
        kept_by |= tl.where(score <= threshold, 0, inside.to(tl.int32) << b)
    list_units(kept_by, k, units, counts, rows, arrived, block, blocks, ROWS, BLOCK_B, BLOCK)


def _ahead(dtype: str, kind: str, rows: int, *, emphasis: bool = False) -> Ahead:
    constants: dict[str, Any] = {
        "ROWS": rows,
        "BLOCK_B": rows,
        "BLOCK": 256,
        "WHOLE": 4096 if kind == "norm" else 1,
        "KIND": kind,
        "ACTIVATION": "silu" if kind == "act" else "",
    }
    given = {"plain": ("x",), "norm": ("x", "added", "weight", "total", "out"), "act": ("x", "added", "out")}[
        kind
    ]
    absent = {"added", "weight", "total", "out"}.difference(given) | (set() if emphasis else {"emphasis"})
    signature = dict.fromkeys(given, f"*{dtype}") | dict.fromkeys(("norm", "gate"), "*fp32")
    signature |= {"emphasis": "*fp32"} if emphasis else {}
    signature |= dict.fromkeys(("units", "counts", "rows", "arrived"), "*i32")
    signature |= {"count": "i32:16", "blocks": "i32", "stride": "i32:16", "epsilon": "fp32"}
    name = f"select, {kind}[{dtype}, {rows} rows{', emphasis' if emphasis else ''}]"
    return Ahead(name, _select, signature, constants | dict.fromkeys(absent))


AHEAD = (
    *(
        _ahead(dtype, kind, rows)
        for kind in ("plain", "norm", "act")
        for dtype, rows in (("bf16", 1), ("bf16", 8), ("fp16", 1), ("fp32", 1))
    ),
    _ahead("bf16", "plain", 8, emphasis=True),
)
