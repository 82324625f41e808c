"""What a gate decides, in one place: every gated op's reference, and every kernel, follows this file.

A *gate record* is a float32 tensor [2]: (threshold, min_kept). A unit (channel, neuron, block) is kept unless
`score <= threshold`, so NaN is always kept, a negative threshold keeps everything, and 0 drops only exact
zeros. The guard: where a row would keep fewer than `min_kept` of its units, the gate is not trusted and the
row keeps everything. Up to `MAX_ROWS` rows are computed together, so they share the union of what each of
them keeps; above that each row keeps its own units, by zeroing the input of a dense product that saves
nothing.

Counters are int64 [3]: (offered, executed, guard_failed), in units summed over rows, and rows for the last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROWS = 8
"""Rows up to which a kernel walks over kept units only."""


@dataclass(frozen=True)
class Decision:
    """What a gate decided.

    keep: bool [rows, units], what takes part in the result; failed: int64 [], rows whose guard failed.
    """

    keep: Tensor
    failed: Tensor


def decide(score: Tensor, gate: Tensor, alive: Tensor | None = None) -> Decision:
    """Apply a gate record to scores.

    score: float32 [rows, units]; gate: float32 [2]; alive: bool [rows, units] or None, the units that an
    earlier gate left (the guard's fraction is of those, and the others are never kept).
    """
    rows, units = score.shape
    kept = ~((score <= gate[0]) & (gate[0] >= 0))
    if alive is None:
        offered = score.new_full((rows,), float(units), dtype=torch.float32)
    else:
        kept = kept & alive
        offered = alive.sum(1).to(torch.float32)
    failed = kept.sum(1).to(torch.float32) < gate[1] * offered
    everything = failed[:, None] if alive is None else failed[:, None] & alive
    kept = kept | everything
    if rows <= MAX_ROWS:
        kept = kept.any(0, keepdim=True).expand(rows, units)
    return Decision(kept, failed.sum())


def count(counters: Tensor, decision: Decision) -> None:
    """Add a decision to counters (int64 [3], in place).

    Above `MAX_ROWS` rows everything offered is computed.
    """
    rows, units = decision.keep.shape
    total = rows * units
    executed = decision.keep.sum() if rows <= MAX_ROWS else torch.tensor(total, device=counters.device)
    counters += torch.stack((torch.tensor(total, device=counters.device), executed, decision.failed))


def input_score(x: Tensor, norm: Tensor) -> Tensor:
    """|x| * norm in float32. x [rows, units], any dtype; norm float32 [units] -> float32 [rows, units]."""
    return x.abs().to(torch.float32) * norm


def zero_unless(keep: Tensor, x: Tensor) -> Tensor:
    """What is kept of x, else 0 (not a product: an infinity that is not kept must leave no NaN)."""
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))
