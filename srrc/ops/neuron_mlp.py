"""srr::neuron_mlp: an MLP that reads only the channels and computes only the neurons that matter.

    neuron_mlp(Tensor x, Tensor? gate_weight, Tensor? gate_bias, Tensor up_weight, Tensor? up_bias,
               Tensor down_weight, Tensor? down_bias, str activation, Tensor input_norm, Tensor neuron_norm,
               Tensor down_norm, Tensor gates, Tensor(a!) counters, Tensor? emphasis=None,
               bool whole_up=False) -> Tensor

Shapes as in srr::dense_mlp; input_norm float32 [K], neuron_norm and down_norm float32 [I]; gates float32
[3, 2]; counters int64 [3, 3]; emphasis float32 [3, K + 1] or None, of x for each gate (`emphasis.py`). Three gates, a
row each:

0. input channels of gate and up, scored |x| * input_norm;
1. neurons scored |activation(gate(x))| * neuron_norm before `up` is computed: a dropped one needs neither
   its row of `up` nor its row of `down` (no-op, and nothing counted, without a gate weight). After CATS
   (Lee et al. 2024);
2. neurons scored |h| * down_norm once h is known: a dropped one needs no row of `down`.

With `whole_up`, the first gate is the gate weight's alone, and `up` reads every channel: where it is kept by neurons, a
row of it is read whole or not at all. (Nothing without a gate weight.)

The third gate is offered every neuron and executes those that both it and the second one kept; its guard's
fraction is of the neurons that the second one left.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops import activation as activations
from srrc.ops import dense_mlp
from srrc.ops.emphasis import emphasised
from srrc.ops.gate import count, decide, input_score, zero_unless
from srrc.ops.register import Grads, Needs, register


def _evaluate(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
    norms: tuple[Tensor, Tensor, Tensor],
    gates: Tensor,
    counters: Tensor,
    emphasis: Tensor | None,
    whole_up: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor]]:
    """Gated hidden values [rows, I] and the masks of the three gates.

    Masks: input [rows, K], neuron [rows, I] or None, down [rows, I].
    """
    act = activations.lookup(activation).forward
    rows = whole = x.reshape(-1, x.shape[-1])
    probes = (None, None, None) if emphasis is None else emphasis.unbind()
    inputs = decide(emphasised(input_score(rows, norms[0]), whole, probes[0]), gates[0])
    count(counters[0], inputs)
    rows = zero_unless(inputs.keep, rows)
    alive: Tensor | None = None
    if gate_weight is None:
        hidden = act(F.linear(rows, up_weight, up_bias))
    else:
        acted = act(F.linear(rows, gate_weight, gate_bias))
        neurons = decide(emphasised(input_score(acted, norms[1]), whole, probes[1]), gates[1])
        count(counters[1], neurons)
        alive = neurons.keep
        hidden = zero_unless(alive, acted * F.linear(whole if whole_up else rows, up_weight, up_bias))
    down = decide(emphasised(input_score(hidden, norms[2]), whole, probes[2]), gates[2], alive)
    count(counters[2], down)
    return zero_unless(down.keep, hidden), (inputs.keep, alive, down.keep)


def reference(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
    input_norm: Tensor,
    neuron_norm: Tensor,
    down_norm: Tensor,
    gates: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
    whole_up: bool = False,
) -> Tensor:
    """The truth: zero what each gate drops, and compute the MLP densely."""
    norms = (input_norm, neuron_norm, down_norm)
    hidden, _ = _evaluate(
        x, gate_weight, gate_bias, up_weight, up_bias, activation, norms, gates, counters, emphasis, whole_up
    )
    return (
        F.linear(hidden, down_weight, down_bias).reshape((*x.shape[:-1], down_weight.shape[0])).contiguous()
    )


def fake(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
    input_norm: Tensor,
    neuron_norm: Tensor,
    down_norm: Tensor,
    gates: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
    whole_up: bool = False,
) -> Tensor:
    """Output shape only."""
    return dense_mlp.fake(x, gate_weight, gate_bias, up_weight, up_bias, down_weight, down_bias, activation)


def backward(
    grad: Tensor,
    needs: Needs,
    *,
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
    input_norm: Tensor,
    neuron_norm: Tensor,
    down_norm: Tensor,
    gates: Tensor,
    counters: None,
    emphasis: Tensor | None,
    whole_up: bool,
    **rest: Any,
) -> Grads:
    """Gradients of x, weights and biases with the kept sets held constant."""
    norms = (input_norm, neuron_norm, down_norm)
    uncounted = torch.zeros(3, 3, dtype=torch.int64, device=x.device)
    _, (keep_input, keep_neuron, keep_down) = _evaluate(
        x, gate_weight, gate_bias, up_weight, up_bias, activation, norms, gates, uncounted, emphasis, whole_up
    )
    wide = (*x.shape[:-1], up_weight.shape[0])
    masks = (
        keep_input.reshape(x.shape),
        None if keep_neuron is None else keep_neuron.reshape(wide),
        keep_down.reshape(wide),
    )
    return dense_mlp.mlp_backward(
        grad,
        needs,
        masks,
        x=x,
        gate_weight=gate_weight,
        gate_bias=gate_bias,
        up_weight=up_weight,
        up_bias=up_bias,
        activation=activation,
        whole_up=whole_up,
        **rest,
    )


op = register(
    "neuron_mlp(Tensor x, Tensor? gate_weight, Tensor? gate_bias, Tensor up_weight, Tensor? up_bias,"
    " Tensor down_weight, Tensor? down_bias, str activation, Tensor input_norm, Tensor neuron_norm,"
    " Tensor down_norm, Tensor gates, Tensor(a!) counters, Tensor? emphasis=None, bool whole_up=False) -> Tensor",
    reference,
    fake,
    backward,
)
