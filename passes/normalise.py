"""Brings a Dynamo graph into one canonical spelling, so that every finder can stay simple."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from srrc.passes.context import Context
from srrc.passes.inline_regions import inline_regions
from srrc.passes.rewrite_inplace import make_functional
from srrc.passes.rewrite_linears import unify_linears
from srrc.passes.rewrite_noops import drop_noops
from srrc.passes.rewrite_spelling import unify_spelling
from srrc.pathways.graph_view import GraphView

Rule = Callable[[GraphView], int]

RULES: tuple[Rule, ...] = (inline_regions, unify_spelling, make_functional, drop_noops, unify_linears)
"""Each edits the graph under the view and returns how many nodes it changed."""


@dataclass(frozen=True)
class Normalise:
    """Same values to the last bit, same aliasing, same order of side effects; twice changes nothing more.

    Graphs inside the graph (checkpoint bodies, branches) are brought into the same spelling too.
    """

    name: str = "normalise"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place."""
        for module in gm.modules():
            if isinstance(module, fx.GraphModule) and _normalise(
                module.graph, context.fqns if module is gm else {}
            ):
                module.recompile()
        return gm


def _normalise(graph: fx.Graph, fqns: Mapping[str, str]) -> int:
    total = 0
    while edits := sum(rule(GraphView(graph, fqns)) for rule in RULES):
        total += edits
    return total
