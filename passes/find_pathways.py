"""Finds the pathways of a normalised graph: runs each kind's finder over one shared view."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from srrc.passes.context import Context
from srrc.pathways import attention, channel, expert, neuron, residual, vocab
from srrc.pathways.base import Pathway
from srrc.pathways.graph_view import GraphView
from srrc.reasons import Refusal

Finder = Callable[[GraphView], Iterator[Pathway | Refusal]]

FINDERS: tuple[Finder, ...] = (
    residual.find,
    neuron.find,
    channel.find,
    vocab.find,
    attention.find,
    expert.find,
)
"""One a kind."""


@dataclass(frozen=True)
class FindPathways:
    """Fills `context.pathways` and `context.refusals`; leaves the graph as it is."""

    name: str = "find_pathways"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Look at `gm`, which must be normalised."""
        view = GraphView(gm.graph, context.fqns)
        found = [item for find in FINDERS for item in find(view)]
        context.pathways = [item for item in found if isinstance(item, Pathway)]
        context.refusals = [item for item in found if isinstance(item, Refusal)]
        return gm
