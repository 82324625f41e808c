"""Neurons of an MLP: a neuron whose activation is small needs neither its up row nor its down row.

Found: `down(act(gate(x)) * up(x))` and `down(act(up(x)))`, where nothing outside reads an intermediate value.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.activation import read_activation
from srrc.pathways.base import Bypass, Cost, Linear, Pathway
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import linear_cost, read_linear
from srrc.pathways.patterns import is_call
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class Mlp:
    """`down(h)` with h [..., neurons] = act(gate(x)) * up(x), or act(up(x)) where `gate` is None.

    nodes: everything between `x` and the value of `down`, in graph order.
    """

    x: fx.Node
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    nodes: tuple[fx.Node, ...]


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each MLP; a refusal for each linear that follows an activation but is not one."""
    for node in view.nodes:
        down = read_linear(view, node)
        if not isinstance(down, Linear):
            continue
        found = _match(view, down)
        if isinstance(found, Refusal):
            yield found
        elif found is not None:
            yield _pathway(view, found)


def _match(view: GraphView, down: Linear) -> Mlp | Refusal | None:
    halves = [down.x]
    if is_call(down.x, "mul") and all(isinstance(a, fx.Node) for a in down.x.args):
        halves = [a for a in down.x.args if isinstance(a, fx.Node)]
    for index, half in enumerate(halves):
        activation = read_activation(view, half)
        if activation is None:
            continue
        first = read_linear(view, activation.x)
        if not isinstance(first, Linear):
            continue
        if len(halves) == 1:
            return _checked(view, Mlp(first.x, None, first, down, activation.name, ()), activation.nodes)
        second = read_linear(view, halves[1 - index])
        if isinstance(second, Linear) and second.x is first.x and second.out_features == first.out_features:
            return _checked(view, Mlp(first.x, first, second, down, activation.name, ()), activation.nodes)
    return None


def _checked(view: GraphView, mlp: Mlp, activation: tuple[fx.Node, ...]) -> Mlp | Refusal:
    first = [mlp.up.node, *([mlp.gate.node] if mlp.gate else [])]
    product = [mlp.down.x] if mlp.gate else []
    nodes = view.in_order([*first, *activation, *product, mlp.down.node])
    inside = set(nodes)
    for node in nodes[:-1]:
        outside = [user.name for user in node.users if user not in inside]
        if node is not mlp.down.node and outside:
            place = (mlp.gate or mlp.up).fqn
            return Refusal(place, "neuron", Reason.USED_ELSEWHERE, f"{node.name} is read by {outside[0]}")
    return Mlp(mlp.x, mlp.gate, mlp.up, mlp.down, mlp.activation, nodes)


def _pathway(view: GraphView, mlp: Mlp) -> Pathway:
    linears = tuple(linear for linear in (mlp.gate, mlp.up, mlp.down) if linear is not None)
    rows, neurons = view.rows(mlp.x), mlp.down.in_features
    pointwise = Cost(rows * neurons * (2 if mlp.gate else 1), rows * 0)
    return Pathway(
        kind="neuron",
        place=linears[0].fqn,
        site=mlp,
        nodes=mlp.nodes,
        inputs=(mlp.x,),
        output=mlp.down.node,
        weights=tuple(linear.fqn for linear in linears),
        units=neurons,
        cost=linear_cost(view, linears) + pointwise,
        bypass=Bypass.ZERO,
    )
