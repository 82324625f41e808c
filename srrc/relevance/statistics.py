"""Looks at values inside a graph while it runs over real inputs, before there is any gate in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from srrc.relevance.replay import Replay

Look = Callable[[Tensor], None]


def look(replay: Replay, calls: Sequence[Sequence[Any]], looks: Mapping[fx.Node, Sequence[Look]]) -> None:
    """Call each of `looks[node]` with the value [..., width] of the node, for each call; runs no further than
    needed.

    calls: arguments of the graph, made one at a time.
    """
    indices = sorted(replay.nodes.index(node) for node in looks)
    for arguments in calls:
        values, position = replay.begin(arguments), 0
        for index in indices:
            replay.advance(values, position, index + 1)
            position = index + 1
            for each in looks[replay.nodes[index]]:
                each(values[replay.nodes[index]])
