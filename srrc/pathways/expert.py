"""Experts of a mixture: an expert that the router gives next to no weight need not run.

Found: two products of grouped rows (`grouped_mm` and its kin) over one parameter of matrices each, with an
activation between them, under a `topk`.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.activation import read_activation
from srrc.pathways.base import Bypass, Linear, Pathway
from srrc.pathways.cost import region_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import read_linear
from srrc.pathways.patterns import argument, called_name, grouped_product, is_method, operands
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class Experts:
    """down_e(act(gate_e(x)) * up_e(x)) for the `top_k` experts e that `router` scores highest for each row.

    x:         rows [T * top_k, H], gathered and sorted by expert
    gate_up:   placeholder [E, 2 I, H] (gate first), or [E, I, H] where `gated` is False
    down:      placeholder [E, H, I]
    first, second: the nodes of the two grouped products
    ends:      the node with each expert's last row plus one, int32 [E], or None if the product got none
    router:    the linear that scores experts, where the graph shows it
    topk:      the node that chooses
    activation: as in `neuron.Mlp`
    """

    x: fx.Node
    first: fx.Node
    second: fx.Node
    ends: fx.Node | None
    gate_up: fx.Node
    down: fx.Node
    router: Linear | None
    topk: fx.Node
    top_k: int
    experts: int
    activation: str
    gated: bool


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each mixture of experts; a refusal for each grouped product that fits no mixture."""
    products = [node for node in view.nodes if grouped_product(node) is not None]
    matched: set[fx.Node] = set()
    for node in products:
        found = _match(view, node)
        if isinstance(found, Experts):
            matched |= {found.first, found.second}
            yield _pathway(view, found)
        elif isinstance(found, Refusal):
            matched.update(other for other in products if view.depends(node, other))
            yield found
    for node in products:
        if node not in matched:
            yield Refusal(
                node.name, "expert", Reason.UNKNOWN_STRUCTURE, "a grouped product without a partner"
            )
    for node in view.nodes:
        if called_name(node) == "bmm":
            yield from _gathered(view, node)


def _match(view: GraphView, second: fx.Node) -> Experts | Refusal | None:
    product = grouped_product(second)
    assert product is not None
    hidden, down = _uncast(product[0]), _parameter(view, product[1])
    pair = operands(hidden, "mul")
    halves = (pair, pair[::-1]) if pair else ((hidden, None),)
    for half, other in halves:
        activation = read_activation(half)
        if activation is None:
            continue
        first = _source(activation.x)
        if first is None or (other is not None and _source(other) is not first):
            continue
        operands_of_first = grouped_product(first)
        assert operands_of_first is not None
        gate_up = _parameter(view, operands_of_first[1])
        if gate_up is None or down is None:
            return Refusal(second.name, "expert", Reason.NOT_A_PARAMETER, "the experts' weights")
        if activation.name is None:
            return Refusal(view.fqn(gate_up), "expert", Reason.UNKNOWN_ACTIVATION, activation.detail)
        choices = [n for n in view.nodes if called_name(n) == "topk" and view.depends(first, n)]
        top_k = argument(choices[-1], 1, "k") if choices else None
        if not isinstance(top_k, int):
            return Refusal(
                view.fqn(gate_up), "expert", Reason.UNKNOWN_STRUCTURE, "no topk chooses the experts"
            )
        return Experts(
            _uncast(operands_of_first[0]),
            first,
            second,
            argument(first, 2, "offs"),
            gate_up,
            down,
            _router(view, choices[-1]),
            choices[-1],
            top_k,
            int(view.shape(gate_up)[0]),
            activation.name,
            other is not None,
        )
    return None


def _gathered(view: GraphView, node: fx.Node) -> Iterator[Refusal]:
    """A matrix for every row, gathered from the experts' (`batched_mm`)."""
    for matrices in node.all_input_nodes:
        source = matrices.args[0] if matrices.target is operator.getitem else None
        if isinstance(source, fx.Node) and view.is_parameter(source) and len(view.shape(source)) == 3:
            yield Refusal(
                view.fqn(source), "expert", Reason.UNKNOWN_STRUCTURE, "a copy of the matrix for every row"
            )


def _uncast(node: fx.Node) -> fx.Node:
    while is_method(node, "to", "contiguous") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _parameter(view: GraphView, node: fx.Node) -> fx.Node | None:
    while is_method(node, "transpose", "contiguous") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node if view.is_parameter(node) else None


def _source(node: object) -> fx.Node | None:
    """The grouped product that `node` is, or is a half of."""
    while isinstance(node, fx.Node) and (node.target is operator.getitem or is_method(node, "chunk")):
        node = node.args[0]
    return node if isinstance(node, fx.Node) and grouped_product(node) else None


def _router(view: GraphView, topk: fx.Node) -> Linear | None:
    above = [n for n in view.nodes[: view.order[topk]] if view.depends(topk, n)]
    return next((found for n in reversed(above) if isinstance(found := read_linear(view, n), Linear)), None)


def _pathway(view: GraphView, site: Experts) -> Pathway:
    between = view.nodes[view.order[site.first] : view.order[site.second] + 1]
    inside = {n for n in between if view.depends(n, site.first) and view.depends(site.second, n)}
    # The views that turn the weights round go along.
    turned = {
        a for n in inside for a in n.all_input_nodes if a in view.constants and not view.is_parameter(a)
    }
    nodes = view.in_order(inside | {a for a in turned if inside.issuperset(a.users)})
    return Pathway(
        kind="expert",
        place=view.fqn(site.gate_up),
        site=site,
        nodes=nodes,
        inputs=view.inputs_of(nodes),
        output=site.second,
        weights=(view.fqn(site.gate_up), view.fqn(site.down)),
        units=site.experts,
        cost=region_cost(view, nodes),
        bypass=Bypass.ZERO,
    )
