"""srr::dense_linear: several linears that read one input, exactly.

    dense_linear(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor[]

x [..., K]; weights [N_i, K] with any strides; biases [N_i] or None -> contiguous [..., N_i]. All of one
dtype. Meant for few rows (decode), where a weight is read once and nothing else matters.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from srrc.ops.register import Grads, Needs, linear_backward, register


def reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """The truth: `F.linear` for each weight."""
    return [F.linear(x, w, b).contiguous() for w, b in zip(weights, biases, strict=True)]


def fake(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Output shapes only."""
    return [x.new_empty((*x.shape[:-1], w.shape[0])) for w in weights]


def linears_backward(
    grads: Sequence[Tensor],
    needs: Needs,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> dict[str, Any]:
    """Gradients of x, weights and biases for linears that share x."""
    grad_x: Tensor | None = None
    grad_weights: list[Tensor | None] = []
    grad_biases: list[Tensor | None] = []
    wanted = (needs["x"], needs["weights"], needs["biases"])
    for grad, weight, bias in zip(grads, weights, biases, strict=True):
        gx, gw, gb = linear_backward(grad, x, weight, bias, wanted)
        if gx is not None:
            grad_x = gx if grad_x is None else grad_x + gx
        grad_weights.append(gw)
        grad_biases.append(gb)
    return {"x": grad_x, "weights": grad_weights, "biases": grad_biases}


def backward(grads: Sequence[Tensor], needs: Needs, *, x: Tensor, weights: Any, biases: Any) -> Grads:
    """Gradients of x, weights and biases, equal to eager's."""
    return linears_backward(grads, needs, x, weights, biases)


op = register(
    "dense_linear(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor[]",
    reference,
    fake,
    backward,
)
