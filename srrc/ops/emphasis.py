"""How much more, or less, a row of a gate's input matters than others: what its scores are multiplied by.

    emphasis = probe[:K] . x / rms(x) + probe[K], limited to +-LIMIT; scores times exp(emphasis)

A probe is float32 [K + 1], learned (`srrc train`). A gate with one keeps more units of a row that the output hangs on:
per-token budgets, for one dot product a row. A row of zeros has no direction: its bias alone counts.
"""

import torch
from torch import Tensor

LIMIT = 2.0
"""No row counts more than exp(LIMIT) times as much as another would: a probe is a guess."""

FLOPS = 4.0
"""Of a row's emphasis, for each of its K values: a product with the probe, and a square."""


def emphasis(x: Tensor, probe: Tensor) -> Tensor:
    """X [..., K], any floating dtype; probe [K + 1] -> float32 [..., 1]. Differentiable in `probe`."""
    wide = x.to(torch.float32)
    rms = wide.square().mean(-1, keepdim=True).sqrt()
    along = torch.where(rms > 0, wide @ probe[:-1].unsqueeze(-1) / rms, torch.zeros_like(rms))
    return (along + probe[-1]).clamp(-LIMIT, LIMIT)


def emphasised(score: Tensor, x: Tensor, probe: Tensor | None) -> Tensor:
    """Scores [rows, units] of rows x [rows, K]; as they are without a probe."""
    return score if probe is None else score * emphasis(x, probe).exp()
