"""What is believed of each gate's drift on the texts of today: its calibrated curve times a factor, learned online.

Feedback explores: on some calls one gate alone is closed as the plan has it, and its drift measured. The factor is the
ratio of what was measured to what the curve said, with the curve counting as `PRIOR` measurements of its own: a few odd
tokens move it little. The most uncertain gates are explored first, weighed by how much of the plan's drift hangs on
them, as in upper-confidence bandits.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from srrc.control.plan import Plan
from srrc.profile import Profile

PRIOR = 8.0
"""A curve counts as so many measurements."""

LARGEST = 8.0
"""No factor is larger than this, or smaller than its inverse."""


@dataclass
class _Seen:
    expected: float = 0.0
    measured: float = 0.0
    count: int = 0


class Beliefs:
    """Factors by gate id; 1 for a gate that was never explored."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def explored(self, gate: str, expected: float, measured: float) -> None:
        """Take in one measurement of a gate alone, nats a token, where its curve said `expected` > 0."""
        entry = self._seen.setdefault(gate, _Seen())
        entry.expected += expected
        entry.measured += min(measured, LARGEST * PRIOR * expected)
        entry.count += 1

    def factor(self, gate: str) -> float:
        """What the gate's curve is multiplied by."""
        entry = self._seen.get(gate)
        if entry is None:
            return 1.0
        prior = PRIOR * entry.expected / entry.count
        found = (prior + entry.measured) / (prior + entry.expected)
        return min(max(found, 1 / LARGEST), LARGEST)

    def uncertainty(self, gate: str) -> float:
        """Relative uncertainty of a gate's drift: falls with every measurement."""
        entry = self._seen.get(gate)
        return 1 / math.sqrt(PRIOR + (0 if entry is None else entry.count))

    def next(self, profile: Profile, plan: Plan) -> str | None:
        """The closed gate whose drift is the most uncertain, in nats; None where no gate is closed."""
        doubts = {
            gate: self.factor(gate) * profile.gates[gate].drift_at(fraction) * self.uncertainty(gate)
            for gate, fraction in plan.fractions.items()
            if fraction > 0
        }
        return max(doubts, key=lambda gate: doubts[gate], default=None)

    def applied(self, profile: Profile) -> Profile:
        """The profile with every explored gate's curve moved by its factor."""
        gates = {
            name: dataclasses.replace(gate, drift=gate.drift * self.factor(name))
            if name in self._seen
            else gate
            for name, gate in profile.gates.items()
        }
        return dataclasses.replace(profile, gates=gates)

    def state(self) -> dict[str, tuple[float, float, int]]:
        """All that was seen, for keeping."""
        return {gate: (seen.expected, seen.measured, seen.count) for gate, seen in self._seen.items()}

    @staticmethod
    def of(state: Mapping[str, tuple[float, float, int]]) -> "Beliefs":
        """Beliefs from what `state` gave."""
        found = Beliefs()
        found._seen = {gate: _Seen(*held) for gate, held in state.items()}
        return found
