"""srr::coarse_head: exact logits for the tokens that can come next, those of a coarse weight for the others.

    coarse_head(Tensor x, Tensor weight, Tensor? bias, Tensor codes, Tensor scale, Tensor gate, Tensor(a!) counters,
                int exact, int bits) -> Tensor

x [..., H]; weight [V, H]; bias [V] or None; codes and scale as in srr::coarse_linear; gate float32 [2]; counters int64
[3] -> contiguous [..., V].
One unit a row, whose score is 0: with a threshold of 0 or more every row goes the coarse way, with a negative one none.
The `exact` best coarse logits of a row are replaced by exact ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops import coarse_linear
from srrc.ops.gate import count, decide
from srrc.ops.register import Grads, Needs, linear_backward, register


def score(x: Tensor) -> Tensor:
    """X [..., H] -> float32 [..., 1]: nothing tells one row from another."""
    return x.new_zeros((*x.shape[:-1], 1), dtype=torch.float32)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
    bits: int,
) -> Tensor:
    """The truth: both, and a choice."""
    decision = decide(score(x).reshape(-1, 1), gate)
    count(counters, decision)
    dense = F.linear(x, weight, bias)
    coarse = coarse_linear.reference(x, codes, scale, bias, bits)
    best = coarse.topk(min(exact, coarse.shape[-1])).indices
    mixed = coarse.scatter(-1, best, dense.gather(-1, best))
    return torch.where(decision.keep.reshape(*x.shape[:-1], 1), dense, mixed).contiguous()


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
    bits: int,
) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def backward(
    grad: Tensor, needs: Needs, *, x: Tensor, weight: Tensor, bias: Tensor | None, **rest: object
) -> Grads:
    """Gradients of the exact head."""
    wanted = (needs["x"], needs["weight"], needs["bias"])
    grad_x, grad_weight, grad_bias = linear_backward(grad, x, weight, bias, wanted)
    return {"x": grad_x, "weight": grad_weight, "bias": grad_bias}


op = register(
    "coarse_head(Tensor x, Tensor weight, Tensor? bias, Tensor codes, Tensor scale, Tensor gate,"
    " Tensor(a!) counters, int exact, int bits) -> Tensor",
    reference,
    fake,
    backward,
)
