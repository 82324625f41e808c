"""Writes what everything costs: a number for each pathway, and on each contraction its own symbolic cost."""

from dataclasses import dataclass

import sympy
import torch
from torch import fx

from srrc.passes.context import Context
from srrc.pathways.cost import node_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import is_contraction

META = "srrc_cost"
"""Key in `node.meta` of a contraction's `Cost`, for whoever prints or cuts the graph."""


@dataclass(frozen=True)
class AnnotateCost:
    """Fills `context.costs`: (kind, place) -> (flops, bytes) at `context.sizes`, or at the captured sizes.

    A cost that depends on a size which only the data decides is left out.
    """

    name: str = "annotate_cost"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Annotate the nodes of `gm` and evaluate the costs of `context.pathways`."""
        view = GraphView(gm.graph, context.fqns)
        for node in view.nodes:
            if is_contraction(node):
                node.meta[META] = node_cost(view, node)
        sizes = captured_sizes(gm.graph) | {str(symbol): value for symbol, value in context.sizes.items()}
        context.costs = {
            (pathway.kind, pathway.place): pathway.cost.at(sizes)
            for pathway in context.pathways
            if {str(symbol) for symbol in pathway.cost.symbols} <= sizes.keys()
        }
        return gm


def captured_sizes(graph: fx.Graph) -> dict[str, int]:
    """Symbol -> the value it had when the graph was captured, for symbols that are inputs of the graph."""
    sizes: dict[str, int] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and isinstance(value.node.expr, sympy.Symbol):
            hint = value.node.hint
            if hint is not None:
                sizes[str(value.node.expr)] = int(hint)
    return sizes
