"""Where a graph is cut into regions: where the residual stream begins, and after each branch joins it."""

from collections.abc import Sequence

from torch import fx

from srrc.pathways.base import Pathway


def region_cuts(pathways: Sequence[Pathway]) -> list[fx.Node]:
    """The nodes after which a region ends. Empty where the graph has no residual branches: one region then."""
    branches = [pathway for pathway in pathways if pathway.kind == "residual"]
    cuts = [branch.output for branch in branches]
    if branches:
        first = min((node for branch in branches for node in branch.nodes), key=_position(branches[0].output.graph))
        cuts.append(first.prev)
    return list(dict.fromkeys(cuts))


def _position(graph: fx.Graph):  # noqa: ANN202
    order = {node: index for index, node in enumerate(graph.nodes)}
    return order.__getitem__
