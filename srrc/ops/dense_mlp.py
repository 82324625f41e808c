"""srr::dense_mlp: a gated or plain MLP in one call, exactly.

    dense_mlp(Tensor x, Tensor? gate_weight, Tensor? gate_bias, Tensor up_weight, Tensor? up_bias,
              Tensor down_weight, Tensor? down_bias, str activation) -> Tensor

x [..., K]; gate_weight, up_weight [I, K]; down_weight [N, I], any strides; biases [I], [I], [N] or None
-> contiguous [..., N]. With a gate: down(activation(gate(x)) * up(x)); without: down(activation(up(x))).
Every intermediate is rounded to x's dtype where eager rounds it.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from srrc.ops import activation as activations
from srrc.ops.register import Grads, Needs, linear_backward, register


def reference(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """The truth: eager's own sequence of operations."""
    act = activations.lookup(activation).forward
    up = F.linear(x, up_weight, up_bias)
    hidden = act(up) if gate_weight is None else act(F.linear(x, gate_weight, gate_bias)) * up
    return F.linear(hidden, down_weight, down_bias).contiguous()


def fake(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """Output shape only (and the activation's name is looked up, so that a wrong one fails while tracing)."""
    activations.lookup(activation)
    return x.new_empty((*x.shape[:-1], down_weight.shape[0]))


def mlp_backward(
    grad: Tensor,
    needs: Needs,
    masks: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
    whole_up: bool = False,
) -> dict[str, Any]:
    """Gradients of an MLP.

    masks: input [..., K], neuron [..., I], down [..., I], held constant; None: all kept.
    whole_up: whether the mask of inputs is the gate weight's alone
    """
    act = activations.lookup(activation)
    keep_input, keep_neuron, keep_down = masks

    def masked(mask: Tensor | None, t: Tensor) -> Tensor:
        return t if mask is None else t * mask

    whole, x = x, masked(keep_input, x)
    keep_up = None if whole_up and gate_weight is not None else keep_input
    x_up = whole if keep_up is None else x
    up = F.linear(x_up, up_weight, up_bias)
    gate = None if gate_weight is None else F.linear(x, gate_weight, gate_bias)
    acted = act.forward(up if gate is None else gate)
    hidden = acted if gate is None else masked(keep_neuron, acted * up)
    wanted = (True, needs["down_weight"], needs["down_bias"])
    grad_hidden, grad_down, grad_down_bias = linear_backward(
        grad, masked(keep_down, hidden), down_weight, down_bias, wanted
    )
    assert grad_hidden is not None
    grad_hidden = masked(keep_neuron if gate is not None else None, masked(keep_down, grad_hidden))
    grad_up = act.backward(grad_hidden, up) if gate is None else grad_hidden * acted
    wanted = (needs["x"], needs["up_weight"], needs["up_bias"])
    grad_x, grad_up_weight, grad_up_bias = linear_backward(grad_up, x_up, up_weight, up_bias, wanted)
    grad_x = None if grad_x is None else masked(keep_up, grad_x)
    found: dict[str, Any] = {
        "up_weight": grad_up_weight,
        "up_bias": grad_up_bias,
        "down_weight": grad_down,
        "down_bias": grad_down_bias,
    }
    if gate is not None and gate_weight is not None:
        grad_gate = act.backward(grad_hidden * up, gate)
        wanted = (needs["x"], needs["gate_weight"], needs["gate_bias"])
        gx, found["gate_weight"], found["gate_bias"] = linear_backward(
            grad_gate, x, gate_weight, gate_bias, wanted
        )
        grad_x = None if grad_x is None or gx is None else grad_x + masked(keep_input, gx)
    found["x"] = grad_x
    return found


def backward(grad: Tensor, needs: Needs, **arguments: Any) -> Grads:
    """Gradients of x, weights and biases, equal to eager's."""
    return mlp_backward(grad, needs, (None, None, None), **arguments)


op = register(
    "dense_mlp(Tensor x, Tensor? gate_weight, Tensor? gate_bias, Tensor up_weight, Tensor? up_bias,"
    " Tensor down_weight, Tensor? down_bias, str activation) -> Tensor",
    reference,
    fake,
    backward,
)
