"""Input channels of the linears: a channel whose |x| times weight norm is small need not be read.

Found: every linear over a parameter; those that read one input tensor share one group, hence one gate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.base import Bypass, Linear, Pathway
from srrc.pathways.cost import linear_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import read_linear
from srrc.pathways.patterns import operands
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class ChannelGroup:
    """All linears that read `x` [..., K], in graph order."""

    x: fx.Node
    linears: tuple[Linear, ...]


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each tensor that linears read; a refusal for each linear over a computed weight."""
    groups: dict[tuple[fx.Node, int], list[Linear]] = {}
    for node in view.nodes:
        linear = read_linear(view, node)
        if isinstance(linear, Refusal):
            yield linear
        elif linear is None:
            yield from _near_miss(view, node)
        else:
            # A value that is written to in between is not the same value any more.
            writers = view.storage.writers.get(view.storage.root(linear.x), ())
            version = sum(view.order[writer] < view.order[node] for writer in writers)
            groups.setdefault((linear.x, version), []).append(linear)
    for (x, _), linears in groups.items():
        group = ChannelGroup(x, tuple(linears))
        nodes = tuple(linear.node for linear in linears)
        yield Pathway(
            kind="channel",
            place=linears[0].fqn,
            site=group,
            nodes=nodes,
            inputs=(x,),
            output=nodes[-1],
            weights=view.parameters_of(nodes),
            units=linears[0].in_features,
            cost=linear_cost(view, group.linears),
            bypass=Bypass.ZERO,
        )


def _near_miss(view: GraphView, node: fx.Node) -> Iterator[Refusal]:
    """A parameter that multiplies from the left: its input channels run along another dimension."""
    pair = operands(node, "matmul")
    if pair and view.is_parameter(pair[0]) and len(view.shape(pair[0])) == 2:
        yield Refusal(
            view.fqn(pair[0]), "channel", Reason.UNSUPPORTED_SHAPE, "the weight multiplies from the left"
        )
