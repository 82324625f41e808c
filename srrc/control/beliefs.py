"""What is believed of each gate's drift on the texts of today: its calibrated curve times a factor, learned online.

Feedback explores: on some calls one gate alone is closed as the plan has it, and its drift measured. The factor is the
ratio of what was measured to what the curve said, with the curve counting as `PRIOR` measurements of its own: a few odd
tokens move it little. The most uncertain gates are explored first, weighed by how much of the plan's drift hangs on
them, as in upper-confidence bandits.

Plans follow in bounded steps: `step` moves the factors that they are made with towards the learned ones, each by at
most `STEP`, and what it moved can be taken back (`srrc/control/trail.py`).
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

STEP = 1.5
"""The most that a factor grows or shrinks by at one step."""

Factors = Mapping[str, float]
"""By gate id; a gate that is not named has 1."""


@dataclass
class _Seen:
    expected: float = 0.0
    measured: float = 0.0
    count: int = 0


class Beliefs:
    """Factors by gate id; 1 for a gate that was never explored. followed: those that plans are made with."""

    def __init__(self) -> None:
        self.followed: Factors = {}
        self._seen: dict[str, _Seen] = {}

    def explored(self, gate: str, expected: float, measured: float) -> None:
        """Take in one measurement of a gate alone, nats a token, where its curve said `expected` > 0."""
        entry = self._seen.setdefault(gate, _Seen())
        entry.expected += expected
        entry.measured += min(measured, LARGEST * PRIOR * expected)
        entry.count += 1

    def factor(self, gate: str) -> float:
        """What the gate's curve should be multiplied by."""
        entry = self._seen.get(gate)
        if entry is None:
            return 1.0
        prior = PRIOR * entry.expected / entry.count
        found = (prior + entry.measured) / (prior + entry.expected)
        return min(max(found, 1 / LARGEST), LARGEST)

    def step(self) -> None:
        """Let plans follow what was learned, a bounded step."""
        followed = dict(self.followed)
        for gate in self._seen:
            now = followed.get(gate, 1.0)
            followed[gate] = min(max(self.factor(gate), now / STEP), now * STEP)
        self.followed = followed

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
        """The profile with the curves moved by the factors that are followed."""
        gates = {
            name: dataclasses.replace(gate, drift=gate.drift * self.followed[name])
            if name in self.followed
            else gate
            for name, gate in profile.gates.items()
        }
        return dataclasses.replace(profile, gates=gates)

    def state(self) -> dict[str, list[float]]:
        """All that was seen, and the factor that is followed, by gate, for keeping."""
        return {
            gate: [seen.expected, seen.measured, seen.count, self.followed.get(gate, 1.0)]
            for gate, seen in self._seen.items()
        }

    @staticmethod
    def of(state: Mapping[str, list[float]]) -> "Beliefs":
        """Beliefs from what `state` gave."""
        found = Beliefs()
        for gate, (expected, measured, count, followed) in state.items():
            found._seen[gate] = _Seen(expected, measured, int(count))
            found.followed = {**found.followed, gate: followed}
        return found
