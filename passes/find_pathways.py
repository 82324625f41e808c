"""Finds the pathways of a normalised graph: runs each kind's finder over one shared view."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

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
        context.pathways = _told_apart(item for item in found if isinstance(item, Pathway))
        context.refusals = [item for item in found if isinstance(item, Refusal)]
        return gm


def _told_apart(pathways: Iterable[Pathway]) -> list[Pathway]:
    """Places made unique within a kind: a layer that is used again (shared weights) gets `#2`, `#3` ..."""
    seen: Counter[tuple[str, str]] = Counter()
    unique = []
    for pathway in pathways:
        seen[pathway.kind, pathway.place] += 1
        times = seen[pathway.kind, pathway.place]
        unique.append(replace(pathway, place=f"{pathway.place}#{times}") if times > 1 else pathway)
    return unique
