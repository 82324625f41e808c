"""The dense cost of a graph, summed over its calls: symbolic once, numbers per call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sympy

from srrc.pathways.base import ZERO_COST, Cost, Pathway

COUNTED = ("channel", "attention", "expert")
"""Kinds whose costs add up to the graph's: an MLP's neurons, the vocabulary head and the branches are made of
these, so counting them too would count the same weights twice."""


@dataclass
class GraphCost:
    """`add(sizes)` adds one call's dense cost.

    cost:  symbolic cost of one call
    flops, bytes: sums over the calls so far
    """

    cost: Cost = ZERO_COST
    symbols: Sequence[sympy.Symbol] = ()
    flops: float = 0.0
    bytes: float = 0.0
    _evaluate: Callable[..., tuple[float, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._evaluate = sympy.lambdify(
            list(self.symbols), (self.cost.flops, self.cost.bytes), modules="math"
        )

    def add(self, sizes: Sequence[int] = ()) -> None:
        """Count one call. `sizes` are the values of `symbols`, in their order."""
        flops, size = self._evaluate(*sizes)
        self.flops += float(flops)
        self.bytes += float(size)


def dense_cost(pathways: Sequence[Pathway]) -> Cost:
    """What the counted pathways of a graph cost together when nothing is skipped."""
    total = ZERO_COST
    for pathway in pathways:
        if pathway.kind in COUNTED:
            total = total + pathway.cost
    return total
