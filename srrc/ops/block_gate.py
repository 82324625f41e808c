"""srr::block_gate: which blocks of an MLP's neurons are worth computing, told from the MLP's input.

    block_gate(Tensor x, Tensor probes, Tensor gate, Tensor(a!) counters) -> Tensor

x [..., H], any floating dtype; probes float32 [blocks, H + 1], a block's weights and its bias; gate float32 [2];
counters int64 [3] -> bool [..., blocks]: which blocks each row computes. A block is a unit, scored by its probe as a
branch is by srr::layer_gate's.
"""

import torch
from torch import Tensor

from srrc.ops.gate import count, decide
from srrc.ops.register import Grads, Needs, register


def score(x: Tensor, probes: Tensor) -> Tensor:
    """The predicted size of each block's contribution: x [..., H] -> float32 [..., blocks]."""
    wide = x.to(torch.float32)
    rms = wide.square().mean(-1, keepdim=True).sqrt()
    return (wide @ probes[:, :-1].t() / rms + probes[:, -1]).exp()


def reference(x: Tensor, probes: Tensor, gate: Tensor, counters: Tensor) -> Tensor:
    """The truth: score each block for each row, and decide."""
    decision = decide(score(x, probes).reshape(-1, len(probes)), gate)
    count(counters, decision)
    return decision.keep.reshape(*x.shape[:-1], len(probes)).contiguous()


def fake(x: Tensor, probes: Tensor, gate: Tensor, counters: Tensor) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], probes.shape[0]), dtype=torch.bool)


def backward(grad: Tensor, needs: Needs, *, x: Tensor, probes: Tensor, gate: Tensor, counters: None) -> Grads:
    """A decision has no gradient."""
    return {}


op = register(
    "block_gate(Tensor x, Tensor probes, Tensor gate, Tensor(a!) counters) -> Tensor",
    reference,
    fake,
    backward,
)
