"""A budget in time: finds the fraction of the dense cost with which a call takes as long as was asked for.

Gates are timed when a graph has compiled (`srrc/control/gate_time.py`), so what a plan saves can be predicted in
seconds. It begins dense. Once a few dense calls have been timed, it asks for a plan that saves what they take too long;
after each window of calls the asked saving moves by what the window's median is off, an integral controller. So neither
the prediction nor the dense time need be right, or stay what they were: attention grows with the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

AIM = 0.98
"""Share of the asked time that is aimed at, so that half of the windows are not just above it."""

FIRST, WINDOW = 8, 32
"""Calls that the first decision takes, and each later one. The very first call is left out: it pages weights in."""

GAIN = 0.7
"""How much of a window's error the asked saving moves by."""

GRADUAL = 0.15
"""The fraction falls by no more than this at a time: conservative at first."""

LEAST = 0.3
"""No lower fraction is asked for, however little time there is: models are of no use there."""

STEP = 0.02
"""Fractions are multiples of this, so that plans are found again."""

PATIENCE = 8
"""Windows for which no fraction is tried again at which calls took too long: the first gates to close may save more
than was asked for, and without them it is too slow again."""

_LATE, _EARLY = 1.01, 0.94


@dataclass
class Pace:
    """One graph's.

    target:   seconds of a call
    fraction: of the dense cost, to ask of the controller now
    dense, median: seconds of a dense call, and of the latest ones; None before they were timed
    late:     whether the latest ones took too long, and there is nothing left to do about it
    """

    target: float
    fraction: float = 1.0
    dense: float | None = None
    median: float | None = None
    late: bool = False
    _need: float = 0.0
    _highest: float = 1.0
    _patience: int = 0
    _seen: list[float] = field(default_factory=list)
    _warm: bool = False

    def took(self, seconds: float, saves: Callable[[float], float]) -> bool:
        """Take in the time of one call. Returns whether `fraction` has changed.

        saves: seconds that the plan of a fraction is predicted to save
        """
        if not self._warm:
            self._warm = True
            return False
        self._seen.append(seconds)
        if len(self._seen) < (FIRST if self.dense is None else WINDOW):
            return False
        self.median, self._seen = median(self._seen), []
        if self.dense is None:
            self.dense = self.median
            self._need = max(0.0, self.dense - AIM * self.target)
        elif _EARLY * self.target <= self.median <= _LATE * self.target:
            self.late = False
            return False
        else:
            most = saves(LEAST)
            self._need = min(max(0.0, self._need + GAIN * (self.median - AIM * self.target)), max(most, 0.0))
        before = self.fraction
        self._remember(before)
        wanted = self._wanted(saves)
        if saves(self._highest) > 0:
            wanted = min(wanted, self._highest)
        self.fraction = max(wanted, round(before - GRADUAL, 6), LEAST)
        self.late = self.median > _LATE * self.target and self.fraction >= before
        return self.fraction != before

    def _remember(self, fraction: float) -> None:
        """Go no higher than what was too slow just now, for a while."""
        assert self.median is not None
        if self.median > _LATE * self.target:
            self._highest, self._patience = max(LEAST, round(fraction - STEP, 6)), PATIENCE
        elif self._patience:
            self._patience -= 1
            if not self._patience:
                self._highest = 1.0

    def _wanted(self, saves: Callable[[float], float]) -> float:
        """The largest fraction whose plan saves what is needed, by bisection; `LEAST` where none does."""
        if self._need <= 0:
            return 1.0
        low, high = round(LEAST / STEP), round(1 / STEP)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if saves(STEP * middle) >= self._need else (low, middle)
        return round(STEP * low, 6)
