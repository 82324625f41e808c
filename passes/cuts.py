"""Where a graph is cut into regions: where the residual stream begins, and after each branch joins it."""

from collections.abc import Sequence

from torch import fx

from srrc.pathways.base import Pathway
from srrc.pathways.patterns import operands
from srrc.pathways.residual import Branch


def region_cuts(graph: fx.Graph, pathways: Sequence[Pathway]) -> list[fx.Node]:
    """The nodes after which a region ends. Empty where the graph has no residual branches: one region then.

    A graph is read again here, since passes may have replaced some of a branch's nodes.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    branches = [pathway.site for pathway in pathways if isinstance(pathway.site, Branch)]
    cuts = [_end_of_sum(branch.add) for branch in branches if branch.add in order]
    for branch in branches[:1]:
        readers = [user for user in branch.stream.users if user in order]
        cuts.append(min(readers, key=order.__getitem__).prev)
    return cuts


def _end_of_sum(add: fx.Node) -> fx.Node:
    """The last addition of the sum that `add` belongs to: parallel branches are added up before they join."""
    while len(add.users) == 1:
        (user,) = add.users
        if operands(user, "add") is None:
            break
        add = user
    return add
