"""Neurons of an MLP: a neuron whose activation is small needs neither its up row nor its down row.

Found: `down(act(gate(x)) * up(x))`, with gate and up two linears or the halves of one, and
`down(act(up(x)))`, where nothing outside reads an intermediate value.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.activation import Activation, read_activation
from srrc.pathways.base import Bypass, Linear, Pathway
from srrc.pathways.cost import linear_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import read_linear, read_slice
from srrc.pathways.patterns import operands
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class Mlp:
    """`down(h)` with h [..., neurons] = act(gate(x)) * up(x), or act(up(x)) where `gate` is None.

    gate, up:   `rows` is set where they are halves of one fused linear (and then share `node`)
    activation: silu, gelu, gelu_tanh, relu, relu2, quick_gelu
    nodes:      everything between `x` and the value of `down`, in graph order
    """

    x: fx.Node
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    nodes: tuple[fx.Node, ...]


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each MLP; a refusal for an unknown activation, another reader, a computed weight."""
    for node in view.nodes:
        down = read_linear(view, node)
        if down is None:
            continue
        x = down.x if isinstance(down, Linear) else node.args[0]
        found = _match(view, down, x) if isinstance(x, fx.Node) else None
        if isinstance(found, Refusal):
            yield found
        elif found is not None:
            yield _pathway(view, found)


def _match(view: GraphView, down: Linear | Refusal, x: fx.Node) -> Mlp | Refusal | None:
    activation = read_activation(x)
    if activation is not None:
        first = read_slice(view, activation.x)
        if first is not None:
            return _build(view, None, first, down, activation, ())
    for half, other in _both_ways(operands(x, "mul")):
        activation = read_activation(half)
        first = read_slice(view, activation.x) if activation is not None else None
        second = read_slice(view, other)
        if activation is None or first is None or second is None:
            continue
        if second[0].x is first[0].x and second[0].out_features == first[0].out_features:
            return _build(view, first, second, down, activation, (x,))
    return None


def _build(
    view: GraphView,
    gate: tuple[Linear, tuple[fx.Node, ...]] | None,
    up: tuple[Linear, tuple[fx.Node, ...]],
    down: Linear | Refusal,
    activation: Activation,
    product: tuple[fx.Node, ...],
) -> Mlp | Refusal:
    first = (gate or up)[0]
    if isinstance(down, Refusal):
        return Refusal(first.fqn, "neuron", down.reason, down.detail)
    if activation.name is None:
        return Refusal(first.fqn, "neuron", Reason.UNKNOWN_ACTIVATION, activation.detail)
    cutters = [*(gate[1] if gate else ()), *up[1]]
    nodes = view.in_order([first.node, up[0].node, *cutters, *activation.nodes, *product, down.node])
    inside = set(nodes)
    for node in nodes[:-1]:
        outside = next((user.name for user in node.users if user not in inside), None)
        if outside is not None:
            return Refusal(first.fqn, "neuron", Reason.USED_ELSEWHERE, f"{node.name} is read by {outside}")
    writer = view.written_between(first.x, nodes[0], down.node)
    if writer is not None:
        return Refusal(first.fqn, "neuron", Reason.WRITTEN_BETWEEN, writer.name)
    return Mlp(first.x, gate[0] if gate else None, up[0], down, activation.name, nodes)


def _both_ways(pair: tuple[fx.Node, fx.Node] | None) -> tuple[tuple[fx.Node, fx.Node], ...]:
    return (pair, pair[::-1]) if pair else ()


def _pathway(view: GraphView, mlp: Mlp) -> Pathway:
    linears = tuple(linear for linear in (mlp.gate, mlp.up, mlp.down) if linear is not None)
    return Pathway(
        kind="neuron",
        place=linears[0].fqn,
        site=mlp,
        nodes=mlp.nodes,
        inputs=(mlp.x,),
        output=mlp.down.node,
        weights=view.parameters_of(mlp.nodes),
        units=mlp.down.in_features,
        cost=linear_cost(view, linears),
        bypass=Bypass.ZERO,
    )
