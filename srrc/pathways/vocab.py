"""The vocabulary head: coarse logits choose the tokens that deserve exact ones.

Found: a linear with at least four times as many outputs as inputs, whose value reaches the graph's output and
no other contraction on the way. Logit scaling, soft caps and slices may follow it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.base import Bypass, Linear, Pathway
from srrc.pathways.cost import linear_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import read_linear
from srrc.pathways.patterns import is_contraction
from srrc.reasons import Reason, Refusal

WIDENING = 4
"""Least ratio of outputs to inputs: below it, choosing tokens costs more than it saves."""


@dataclass(frozen=True)
class Head:
    """`linear` gives the logits [..., vocabulary]."""

    linear: Linear


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each vocabulary head; a refusal where its weight is no parameter."""
    contractions = [node for node in view.nodes if is_contraction(node)]
    for node in view.nodes:
        linear = read_linear(view, node)
        if linear is None or not view.depends(view.output, node):
            continue
        if any(other is not node and view.depends(other, node) for other in contractions):
            continue
        if isinstance(linear, Refusal):
            if _widens(view, node):
                yield Refusal(linear.place, "vocab", linear.reason, linear.detail)
        elif linear.out_features >= WIDENING * linear.in_features:
            yield _pathway(view, linear)
        elif linear.out_features > linear.in_features:
            ratio = f"{linear.out_features} outputs of {linear.in_features} inputs"
            yield Refusal(linear.fqn, "vocab", Reason.NO_SAVING, ratio)


def _widens(view: GraphView, node: fx.Node) -> bool:
    out, x = view.shape(node)[-1], view.shape(node.args[0])[-1]
    return bool(out.is_number and x.is_number and out >= WIDENING * x)


def _pathway(view: GraphView, linear: Linear) -> Pathway:
    return Pathway(
        kind="vocab",
        place=linear.fqn,
        site=Head(linear),
        nodes=(linear.node,),
        inputs=(linear.x,),
        output=linear.node,
        weights=view.parameters_of((linear.node,)),
        units=linear.out_features,
        cost=linear_cost(view, (linear,)),
        bypass=Bypass.COARSE,
    )
