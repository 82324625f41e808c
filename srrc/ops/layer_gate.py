"""srr::layer_gate: whether a residual branch is worth computing, told from the stream before it.

    layer_gate(Tensor x, Tensor probe, Tensor gate, Tensor(a!) counters) -> Tensor

x [..., H], any floating dtype; probe float32 [H + 1], weights and a bias; gate float32 [2]; counters int64 [3] ->
bool [..., 1]: which rows run the branch. One unit a row.
Score of a row: exp(probe[:H] . x / rms(x) + probe[H]), the size of what the branch is predicted to add relative to
the stream, ||exit|| / ||stream||. A row of zeros has no direction: its score is NaN, and it is kept.
"""

import torch
from torch import Tensor

from srrc.ops import block_gate
from srrc.ops.register import Grads, Needs, register


def score(x: Tensor, probe: Tensor) -> Tensor:
    """The predicted relative size of the branch's contribution: x [..., H] -> float32 [..., 1]."""
    return block_gate.score(x, probe.unsqueeze(0))


def reference(x: Tensor, probe: Tensor, gate: Tensor, counters: Tensor) -> Tensor:
    """The truth: score each row, and decide."""
    return block_gate.reference(x, probe.unsqueeze(0), gate, counters)


def fake(x: Tensor, probe: Tensor, gate: Tensor, counters: Tensor) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], 1), dtype=torch.bool)


def backward(grad: Tensor, needs: Needs, *, x: Tensor, probe: Tensor, gate: Tensor, counters: None) -> Grads:
    """A decision has no gradient."""
    return {}


op = register(
    "layer_gate(Tensor x, Tensor probe, Tensor gate, Tensor(a!) counters) -> Tensor",
    reference,
    fake,
    backward,
)
