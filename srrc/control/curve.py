"""One gate as the controller sees it: what each fraction dropped saves and costs in drift, reduced to its
convex hull.

Between two corners of the hull a gate is worth the straight line; the corners are where a greedy choice by
marginal drift per saving can stop, and greedy over hulls is optimal (the Lagrangian of a knapsack whose items
can be split).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Corner:
    """A point of a gate's curve: share of the dense cost saved and drift in nats a token, at a fraction
    dropped.
    """

    fraction: float
    saved: float
    drift: float


@dataclass(frozen=True)
class Segment:
    """The way from one corner of a gate's hull to the next. `slope`: nats per share saved.

    whole: it can only be gone to its end, because most of what it saves is saved as soon as the gate is there
    """

    gate: str
    start: Corner
    end: Corner
    whole: bool = False

    @property
    def slope(self) -> float:
        """Marginal drift per share of the dense cost."""
        return (self.end.drift - self.start.drift) / (self.end.saved - self.start.saved)

    def part(self, share: float) -> Corner:
        """The point `share` of the way along. Shares saved and dropped are linear in each other within a
        segment.
        """
        if share >= 1.0:
            return self.end
        return Corner(
            self.start.fraction + share * (self.end.fraction - self.start.fraction),
            self.start.saved + share * (self.end.saved - self.start.saved),
            self.start.drift + share * (self.end.drift - self.start.drift),
        )


def corners(fractions: Sequence[float], drifts: Sequence[float], unit: float, fixed: float) -> list[Corner]:
    """The curve of a gate, from the fraction that only pays for the gate itself (nothing saved, no drift) on.

    unit: share of the dense cost saved if everything were dropped; fixed: share that the gate itself costs as
    soon as it drops anything (negative where its being there saves). Points that save nothing are left out.
    """
    found = [Corner(max(fixed / unit, 0.0) if unit > 0 else 0.0, 0.0, 0.0)]
    for fraction, drift in zip(fractions, drifts, strict=True):
        saved = fraction * unit - fixed
        if fraction > 0 and saved > 0:
            found.append(Corner(fraction, saved, max(drift, 0.0)))
    return found


def hull(points: Sequence[Corner]) -> list[Corner]:
    """The lower convex hull of a curve: from its first point on, ascending in `saved` and in slope."""
    kept: list[Corner] = []
    for point in sorted(points, key=lambda corner: (corner.saved, corner.drift)):
        if kept and point.saved <= kept[-1].saved:
            continue
        while len(kept) >= 2 and _above(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def segments(gate: str, points: Sequence[Corner], *, whole_first: bool = False) -> list[Segment]:
    """The segments of the hull of a curve, ascending in slope. whole_first: the first cannot be split."""
    pairs = enumerate(itertools.pairwise(hull(points)))
    return [Segment(gate, start, end, whole_first and index == 0) for index, (start, end) in pairs]


def _above(first: Corner, middle: Corner, last: Corner) -> bool:
    """Whether `middle` lies on or above the line from `first` to `last`."""
    across = (middle.drift - first.drift) * (last.saved - first.saved)
    return across >= (last.drift - first.drift) * (middle.saved - first.saved)
