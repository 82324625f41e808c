"""srr::channel_linear: linears that read only the input channels that matter.

    channel_linear(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor norm, Tensor gate,
                   Tensor(a!) counters, Tensor? emphasis=None) -> Tensor

x [..., K]; weights [N_i, K] with any strides (input-major, stride (1, N), lets a kernel skip what is dropped);
biases [N_i] or None; norm float32 [K]; gate float32 [2]; counters int64 [3]; emphasis float32 [K + 1] or None (see
`emphasis.py`) -> contiguous [..., N_1 + N_2 + ...], for the caller to split (torch functionalizes no mutable op that
returns a list).
Score of channel k: |x_k| * norm_k, times the row's emphasis. Source: TEAL (Liu et al. 2024), weighted as in Wanda (Sun
et al. 2023).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srrc.ops import dense_linear
from srrc.ops.emphasis import emphasised
from srrc.ops.gate import count, decide, input_score, zero_unless
from srrc.ops.register import Grads, Needs, register


def reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
) -> Tensor:
    """The truth: zero the dropped channels, then `F.linear`."""
    rows = x.reshape(-1, x.shape[-1])
    decision = decide(emphasised(input_score(rows, norm), rows, emphasis), gate)
    count(counters, decision)
    masked = zero_unless(decision.keep, rows).reshape(x.shape)
    return torch.cat(dense_linear.reference(masked, weights, biases), -1)


def fake(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], sum(w.shape[0] for w in weights)))


def backward(
    grad: Tensor,
    needs: Needs,
    *,
    x: Tensor,
    weights: Any,
    biases: Any,
    norm: Tensor,
    gate: Tensor,
    counters: None,
    emphasis: Tensor | None,
) -> Grads:
    """Gradients of x, weights and biases with the kept set held constant."""
    rows = x.reshape(-1, x.shape[-1])
    keep = decide(emphasised(input_score(rows, norm), rows, emphasis), gate).keep.reshape(x.shape)
    grads = torch.split_with_sizes(grad, [w.shape[0] for w in weights], -1)
    found = dense_linear.linears_backward(grads, needs, zero_unless(keep, x), weights, biases)
    if found["x"] is not None:
        found["x"] = zero_unless(keep, found["x"])
    return found


op = register(
    "channel_linear(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor norm, Tensor gate,"
    " Tensor(a!) counters, Tensor? emphasis=None) -> Tensor",
    reference,
    fake,
    backward,
)
