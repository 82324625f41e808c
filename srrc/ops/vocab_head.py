"""srr::vocab_head: logits that are exact where the next token can be, and coarse elsewhere.

    vocab_head(Tensor x, Tensor weight, Tensor? bias, Tensor coarse_in, Tensor coarse_out, Tensor gate,
               Tensor(a!) counters, int block) -> Tensor

x [..., H]; weight [V, H]; bias [V] or None; coarse_in [r, H]; coarse_out [V, r]; gate float32 [2]; counters int64 [3],
in blocks of `block` successive tokens -> contiguous [..., V].
The coarse logits (coarse_out @ (coarse_in @ x) + bias, in float32) score each block: exp(its best - the best of all),
i.e. how probable its best token is beside the most probable one, in 0..1. Kept blocks get their exact logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.gate import Decision, count, decide, zero_unless
from srrc.ops.register import Grads, Needs, linear_backward, register


def _coarse(rows: Tensor, coarse_in: Tensor, coarse_out: Tensor, bias: Tensor | None) -> Tensor:
    """Coarse logits [rows, V], float32 (float64 for float64 inputs)."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    code = F.linear(rows.to(wide), coarse_in.to(wide))
    return F.linear(code, coarse_out.to(wide), None if bias is None else bias.to(wide))


def block_score(coarse: Tensor, block: int) -> Tensor:
    """Score of each block of `block` tokens. coarse [rows, V] -> float32 [rows, ceil(V / block)], in 0..1."""
    short = -coarse.shape[-1] % block
    padded = F.pad(coarse, (0, short), value=float("-inf"))
    best = padded.view(coarse.shape[0], -1, block).amax(-1)
    return torch.exp(best - best.amax(-1, keepdim=True)).to(torch.float32)


def _decide(coarse: Tensor, gate: Tensor, block: int) -> tuple[Decision, Tensor]:
    """The decision by block, and the mask [rows, V] by token."""
    decision = decide(block_score(coarse, block), gate)
    tokens = decision.keep.repeat_interleave(block, dim=1)[:, : coarse.shape[-1]]
    return decision, tokens


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coarse_in: Tensor,
    coarse_out: Tensor,
    gate: Tensor,
    counters: Tensor,
    block: int,
) -> Tensor:
    """The truth: both sets of logits, and a choice by block."""
    rows = x.reshape(-1, x.shape[-1])
    coarse = _coarse(rows, coarse_in, coarse_out, bias)
    decision, tokens = _decide(coarse, gate, block)
    count(counters, decision)
    logits = torch.where(tokens, F.linear(rows, weight, bias), coarse.to(x.dtype))
    return logits.reshape((*x.shape[:-1], weight.shape[0])).contiguous()


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coarse_in: Tensor,
    coarse_out: Tensor,
    gate: Tensor,
    counters: Tensor,
    block: int,
) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def backward(
    grad: Tensor,
    needs: Needs,
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coarse_in: Tensor,
    coarse_out: Tensor,
    gate: Tensor,
    counters: None,
    block: int,
) -> Grads:
    """Gradients of x, weight, bias, coarse_in and coarse_out with the chosen blocks held constant."""
    rows = x.reshape(-1, x.shape[-1])
    grad = grad.reshape(-1, grad.shape[-1])
    _, tokens = _decide(_coarse(rows, coarse_in, coarse_out, bias), gate, block)
    wanted = (needs["x"], needs["weight"], needs["bias"])
    grad_x, grad_weight, _ = linear_backward(zero_unless(tokens, grad), rows, weight, None, wanted)
    code = F.linear(rows, coarse_in)
    wanted = (needs["x"] or needs["coarse_in"], needs["coarse_out"], False)
    grad_code, grad_out, _ = linear_backward(zero_unless(~tokens, grad), code, coarse_out, None, wanted)
    grad_in: Tensor | None = None
    if grad_code is not None:
        wanted = (needs["x"], needs["coarse_in"], False)
        more_x, grad_in, _ = linear_backward(grad_code, rows, coarse_in, None, wanted)
        grad_x = None if grad_x is None or more_x is None else (grad_x + more_x).reshape(x.shape)
    return {
        "x": grad_x,
        "weight": grad_weight,
        "bias": grad.sum(0) if needs["bias"] and bias is not None else None,
        "coarse_in": grad_in,
        "coarse_out": grad_out,
    }


op = register(
    "vocab_head(Tensor x, Tensor weight, Tensor? bias, Tensor coarse_in, Tensor coarse_out, Tensor gate,"
    " Tensor(a!) counters, int block) -> Tensor",
    reference,
    fake,
    backward,
)
