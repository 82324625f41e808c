"""What a gate costs and saves on this machine, in seconds, as it was timed: the cost estimator beside the FLOPs."""

from dataclasses import dataclass
from itertools import pairwise

NEVER = 1.0
"""A break-even fraction that no plan reaches: the gate stays open."""


@dataclass(frozen=True)
class GateTime:
    """One gate's op, or the branch that it stands before, timed with the model's own weights.

    opened:   seconds of a call with the gate open
    dropping: (fraction of units dropped, seconds), by rising fraction; straight lines between, and the last one goes on
    rows:     rows that are computed together: units are saved that all of them drop
    """

    opened: float
    dropping: tuple[tuple[float, float], ...]
    rows: int = 1

    @property
    def break_even(self) -> float:
        """The fraction that a row must drop for the gate to save time, of rows that agree by chance alone."""
        return float(self._crossing() ** (1 / self.rows))

    def saved(self, fraction: float) -> float:
        """Seconds saved where each row drops this fraction; less than nothing where deciding costs more."""
        if fraction <= 0:
            return 0.0
        return self.opened - self._seconds(fraction**self.rows)

    def _seconds(self, fraction: float) -> float:
        for (low, before), (high, after) in pairwise(self.dropping):
            if fraction <= high or (high, after) == self.dropping[-1]:
                return max(0.0, before + (after - before) * (fraction - low) / (high - low))
        return self.opened

    def _crossing(self) -> float:
        for (low, before), (high, after) in reversed([*pairwise(self.dropping)]):
            if before > self.opened or ((high, after) == self.dropping[-1] and after > self.opened):
                if after >= before:
                    return NEVER
                return min(NEVER, low + (high - low) * (before - self.opened) / (before - after))
        return 0.0


MASKED = GateTime(0.0, ((0.0, 1e-9), (1.0, 1e-9)))
"""Of a gate whose units are computed all the same: it never pays."""
