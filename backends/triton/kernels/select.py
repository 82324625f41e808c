"""Which input channels of a linear are worth reading, listed block by block, along with what comes before the linear.

    select(x, norm, gate, block) -> Kept
    select_norm(stream, added, weight, norm, gate, block) -> (stream + added, x, Kept)    x its RMS norm times weight
    select_glu(gate_up, norm, gate, block) -> (x, Kept)                                   x = silu(gate) * up

x, stream, added [B, K], gate_up [B, 2 K], 1 <= B <= 8; weight [K]; norm float32 [K]; gate float32 [2]: (threshold,
min_kept); fp16, bf16 or fp32. A channel's score is |x| * norm, as in srr::channel_linear: kept unless <= threshold.
A program has a block of channels. For an RMS norm it reads whole rows, which lie in L2: that costs it less than another
launch would.
Source: TEAL (Liu et al. 2024), weighted as in Wanda (Sun et al. 2023).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.lists import Kept, empty, list_units
from srrc.ops.gate import MAX_ROWS


def select(x: Tensor, norm: Tensor, gate: Tensor, *, block: int = 256) -> Kept:
    """Launch on x as it is. Raises ValueError for what the kernel does not take."""
    kept = _prepare(x, norm, x.shape[1], block)
    _launch(x, None, None, norm, gate, None, None, kept, "plain", 0.0)
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
    kept = _prepare(stream, norm, stream.shape[1], block)
    total, x = torch.empty_like(stream), torch.empty_like(stream)
    _launch(stream, added, weight, norm, gate, total, x, kept, "norm", epsilon)
    return total, x, kept


def select_glu(gate_up: Tensor, norm: Tensor, gate: Tensor, *, block: int = 256) -> tuple[Tensor, Kept]:
    """Launch on a gated MLP's hidden values: those values, and what of them is kept."""
    rows, both = gate_up.shape
    kept = _prepare(gate_up, norm, both // 2, block)
    x = gate_up.new_empty(rows, both // 2)
    _launch(gate_up, None, None, norm, gate, None, x, kept, "glu", 0.0)
    return x, kept


def reference(x: Tensor, norm: Tensor) -> Tensor:
    """The truth: the scores that `lists.reference` makes lists of."""
    return x.abs().float() * norm


def normalised(stream: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """The truth for `select_norm`: an RMS norm in float64, rounded to the stream's dtype."""
    wide = stream.double()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide if weight is None else wide * weight.double()).to(stream.dtype)


def glu(gate_up: Tensor) -> Tensor:
    """The truth for `select_glu`, in float64, rounded to its dtype."""
    gate, up = gate_up.double().chunk(2, -1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def _prepare(x: Tensor, norm: Tensor, count: int, block: int) -> Kept:
    if not 1 <= len(x) <= MAX_ROWS or not x.is_contiguous() or norm.shape != (count,):
        raise ValueError(
            f"select takes 1 to {MAX_ROWS} contiguous rows and a norm for each of {count} channels, not"
            f" {tuple(x.shape)} with strides {x.stride()} and {tuple(norm.shape)}"
        )
    return empty(x, len(x), count, block)


def _launch(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    norm: Tensor,
    gate: Tensor,
    total: Tensor | None,
    out: Tensor | None,
    kept: Kept,
    kind: str,
    epsilon: float,
) -> None:
    rows = len(x)
    _select[(len(kept.counts),)](
        x, added, weight, norm, gate, total, out, kept.units, kept.counts, kept.rows, kept.count, len(kept.counts),
        epsilon, ROWS=rows, BLOCK_B=triton.next_power_of_2(rows), BLOCK=kept.block,
        WHOLE=triton.next_power_of_2(kept.count) if kind == "norm" else 1, KIND=kind, num_warps=4,
    )  # fmt: skip


@triton.jit
def _select(
    x, added, weight, norm, gate, total, out, units, counts, rows, count, blocks, epsilon,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    k = block * BLOCK + tl.arange(0, BLOCK)
    inside = k < count
    worth = tl.load(norm + k, mask=inside, other=0.0)
    threshold = tl.load(gate)
    kept_by = tl.zeros((BLOCK,), tl.int32)
    for b in tl.static_range(ROWS):
        if KIND == "glu":
            left = tl.load(x + 2 * b * count + k, mask=inside, other=0.0).to(tl.float32)
            value = left * tl.sigmoid(left) * tl.load(x + (2 * b + 1) * count + k, mask=inside, other=0.0)
        else:
            value = tl.load(x + b * count + k, mask=inside, other=0.0).to(tl.float32)
        if KIND == "norm":
            each = tl.arange(0, WHOLE)
            row = tl.load(x + b * count + each, mask=each < count, other=0.0).to(tl.float32)
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
        # A score is never negative, so a negative threshold keeps everything; nor is NaN <= anything.
        kept_by |= tl.where(tl.abs(value) * worth <= threshold, 0, inside.to(tl.int32) << b)
    list_units(kept_by, k, units, counts, rows, block, blocks, ROWS, BLOCK_B, BLOCK)


def _ahead(dtype: str, kind: str, rows: int) -> Ahead:
    constants: dict[str, Any] = {
        "ROWS": rows,
        "BLOCK_B": rows,
        "BLOCK": 256,
        "WHOLE": 4096 if kind == "norm" else 1,
        "KIND": kind,
    }
    given = {"plain": ("x",), "norm": ("x", "added", "weight", "total", "out"), "glu": ("x", "out")}[kind]
    constants |= dict.fromkeys({"added", "weight", "total", "out"}.difference(given))
    signature = dict.fromkeys(given, f"*{dtype}") | dict.fromkeys(("norm", "gate"), "*fp32")
    signature |= dict.fromkeys(("units", "counts", "rows"), "*i32")
    signature |= {"count": "i32:16", "blocks": "i32", "epsilon": "fp32"}
    return Ahead(f"select, {kind}[{dtype}, {rows} rows]", _select, signature, constants)


AHEAD = tuple(
    _ahead(dtype, kind, rows)
    for kind in ("plain", "norm", "glu")
    for dtype, rows in (("bf16", 1), ("bf16", 8), ("fp16", 1), ("fp32", 1))
)
