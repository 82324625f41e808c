"""Corrects the sum of single gates' drifts by what was measured with many gates closed at once."""

import bisect
import math
from collections.abc import Sequence

from srrc.profile import Joint


class Correction:
    """A never-descending map from added to predicted drift, through the measured points.

    Between them it is a straight line in logarithms; beyond them the ratio of the nearest point holds.
    Without points it changes nothing.
    """

    def __init__(self, points: Sequence[Joint]) -> None:
        usable = sorted((p.added, p.measured) for p in points if p.added > 0 and p.measured > 0)
        self._added: list[float] = []
        self._log: list[float] = []
        for added, measured in usable:
            if self._added and added <= self._added[-1]:
                continue
            self._added.append(added)
            self._log.append(max(math.log(measured), self._log[-1] if self._log else -math.inf))

    def predict(self, added: float) -> float:
        """Predicted joint drift, nats a token."""
        if added <= 0 or not self._added:
            return max(added, 0.0)
        index = bisect.bisect_left(self._added, added)
        if index == 0:
            return added * math.exp(self._log[0]) / self._added[0]
        if index == len(self._added):
            return added * math.exp(self._log[-1]) / self._added[-1]
        low, high = math.log(self._added[index - 1]), math.log(self._added[index])
        share = (math.log(added) - low) / (high - low)
        return math.exp(self._log[index - 1] * (1 - share) + self._log[index] * share)

    def allowed(self, drift: float) -> float:
        """The largest added drift that is predicted to stay within `drift` (within a part in 10^12)."""
        if drift <= 0:
            return 0.0
        low, high = 0.0, drift
        while self.predict(high) <= drift and high < 1e12:
            low, high = high, high * 2
        for _ in range(200):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if self.predict(middle) <= drift else (low, middle)
        return low
