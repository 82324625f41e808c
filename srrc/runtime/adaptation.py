"""How one graph's plan follows what is measured: the drift it may have, and what each gate is believed to cost."""

import math
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from srrc.control.gate_time import GateTime
from srrc.control.history import Learned
from srrc.control.pace import Pace
from srrc.control.paying import plan_that_pays
from srrc.control.plan import Plan, Record
from srrc.control.regulator import Regulator
from srrc.options import Budget, Latency
from srrc.profile import Profile
from srrc.runtime.events import Events

REACH = 2.0
"""The level may rise to so many bounds, for texts that drift less than the profile says."""

CARRIED = 2.0
"""What a call drifts by is counted so many times: its dense answer is computed from the cache that routed calls left,
and from a cache of dense ones it would be as much further away again (on SmolLM2-135M: docs/feedback.md)."""

EXPLORE = 0.25
"""Share of the measured calls that also explore one gate."""

LEARN = 16
"""After so many explored gates the plan is made anew."""

_RUNGS = 4
"""Levels within a factor of two that have plans of their own."""

_LOWEST, _TOP = -6 * _RUNGS, 1 << 20
"""The rung on which every gate is open, and the one on which the plan is all that may ever be asked."""


@dataclass(frozen=True)
class Trial:
    """One gate to close alone, at `record`; its curve says `expected` nats a token."""

    gate: str
    record: Record
    expected: float


class Adaptation:
    """One graph's. Thread-safe, where graphs that share what was learned share `lock` too.

    key:        what plans of this graph are kept under: two graphs of one key have the same gates
    learned:    what the history knows of the texts at hand; `enter` goes on with another
    profile:    of the graph's gates
    max_drift:  the bound, None where only the budget counts: then nothing is moved, drift is only watched
    feedback:   fraction of calls that are measured
    times:      of the graph's gates; asked for at each plan, since they are timed after the graph has compiled
    """

    def __init__(
        self,
        key: str,
        learned: Learned,
        profile: Profile,
        max_drift: float | None,
        feedback: float,
        times: Callable[[], Mapping[str, GateTime]],
        events: Events,
        seed: int = 0,
        lock: "threading.RLock | None" = None,
    ) -> None:
        self.learned = learned
        self._key = key
        self._profile, self._max_drift, self._fraction = profile, max_drift, feedback
        self._times, self._events = times, events
        self.pace: Pace | None = None
        self._budget: float | None = None
        self._savings: dict[float, float] = {}
        self._random = random.Random(seed)  # noqa: S311 (which calls are measured is no secret)
        self._lock = lock or threading.RLock()

    @property
    def regulator(self) -> Regulator | None:
        """What moves the level on the texts at hand; None where nothing does."""
        return self.learned.regulators.get(self._max_drift) if self._max_drift and self._fraction else None

    def plan(self, budget: Budget | None) -> Plan:
        """The plan for a budget, at the level that the drift measured so far allows. For a time it begins dense."""
        with self._lock:
            if isinstance(budget, Latency):
                self.pace = Pace(budget.seconds)
                self._budget = self.pace.fraction
            else:
                self.pace, self._budget = None, budget
            self._savings = {}
            return self._enter()

    def took(self, call: int, seconds: float) -> Plan | None:
        """Take in the time of a call that decodes. Returns the plan to follow from now on, None where it stays."""
        if self.pace is None:
            return None
        with self._lock:
            if not self.pace.took(seconds, self._saves):
                return None
            self._budget = self.pace.fraction
            plan = self._enter()
        taken, asked = self.pace.median or 0.0, self.pace.target
        text = f"calls took {1e3 * taken:.3g} ms, asked {1e3 * asked:.3g}: the budget is {self._budget:g} now"
        self._events.add(call, "pace", text, seconds=taken, asked=asked, budget=self._budget)
        return plan

    def _saves(self, fraction: float) -> float:
        """Seconds of a call that the plan of a budget saves, by the times of its gates."""
        if fraction not in self._savings:
            times = self._times()
            dropped = self._make(None, fraction).fractions
            saved = (times[gate].saved(part) for gate, part in dropped.items() if gate in times)
            self._savings[fraction] = sum(saved)
        return self._savings[fraction]

    def enter(self, learned: Learned) -> Plan:
        """Go on with what was learned on other texts. Returns the plan for them."""
        with self._lock:
            self.learned, self._savings = learned, {}
            return self._enter()

    def _enter(self) -> Plan:
        if self._max_drift and self._fraction:
            reach = REACH * self._max_drift
            if self._budget is not None:
                reach = min(reach, self._at(None).drift)
            regulators = self.learned.regulators
            regulators.setdefault(self._max_drift, Regulator(self._max_drift, reach)).extend(reach)
        return self._current()

    def due(self) -> bool:
        """Whether this call is measured: drawn by lot, so that nothing in the texts can dodge it."""
        if self.regulator is not None and self.regulator.alarmed:
            return True
        return self._random.random() < self._fraction

    def stop_measuring(self) -> None:
        """Go on as without feedback."""
        self._fraction = 0.0

    def measured(self, call: int, drift: float) -> Plan | None:
        """Take in one measurement. Returns the plan to follow from now on, None where it stays."""
        taken_back = self._judge(call, drift)
        return self._regulate(call, drift) or taken_back

    def _judge(self, call: int, drift: float) -> Plan | None:
        """Take back what plans were made to follow last, where drift has grown since."""
        with self._lock:
            learned = self.learned
            if not learned.trail.measured(drift, self._at(self._rung()).drift, learned.beliefs):
                return None
            self._events.add(
                call, "rollback", "drift grew after the last step: plans follow what they did before it"
            )
            return self._made_anew()

    def _regulate(self, call: int, drift: float) -> Plan | None:
        if self.regulator is None:
            return None
        with self._lock:
            before, alarmed = self._rung(), self.regulator.alarmed
            self.regulator.measured(CARRIED * drift)
            if self.regulator.alarmed and not alarmed:
                self._events.add(
                    call,
                    "alarm",
                    f"measured {drift:.3g} nats of {self.regulator.bound / CARRIED:.3g}: every call is measured now",
                    drift=drift,
                    bound=self.regulator.bound,
                )
            elif alarmed and not self.regulator.alarmed:
                self._events.add(call, "calm", "back to measuring a few calls", level=self.regulator.level)
            if self._rung() == before:
                return None
            plan = self._current()
        level = self.regulator.level
        text = f"measured {drift:.3g} nats: gates may now drift by {max(level, 0.0):.3g}, spending {plan.spent:.2f}"
        self._events.add(call, "plan", text, drift=drift, level=level, spent=plan.spent)
        return plan

    def trial(self, plan: Plan) -> Trial | None:
        """A gate to explore on a call that is measured; on most None."""
        if self._random.random() >= EXPLORE:
            return None
        with self._lock:
            gate = self.learned.beliefs.next(self._profile, plan)
        if gate is None:
            return None
        held, fraction = self._profile.gates[gate], plan.fractions[gate]
        expected = held.drift_at(fraction)
        return (
            Trial(gate, (held.threshold(fraction), held.min_kept(fraction)), expected)
            if expected > 0
            else None
        )

    def explored(self, call: int, trial: Trial, drift: float) -> Plan | None:
        """Take in what closing that gate alone drifted by. Returns a new plan now and then."""
        with self._lock:
            self.learned.beliefs.explored(trial.gate, trial.expected, CARRIED * drift)
            self.learned.explored += 1
            factor = self.learned.beliefs.factor(trial.gate)
            text = f"{trial.gate} alone drifted by {drift:.3g} nats, its curve says {trial.expected:.3g}"
            self._events.add(call, "explored", text, drift=drift, expected=trial.expected, factor=factor)
            if self.learned.explored < LEARN or self.learned.trail.judging:
                return None
            self.learned.explored = 0
            self.learned.trail.step(self.learned.beliefs)
            self._events.add(call, "step", f"plans follow what {LEARN} explored gates have shown")
            return self._made_anew()

    def _rung(self) -> int | None:
        """The step of the ladder of plans that the level stands on; None where there is no level."""
        if self.regulator is None:
            return None
        level, bound = self.regulator.level, self.regulator.bound
        if level <= 0:
            return _LOWEST
        if level >= self.regulator.reach:
            return _TOP
        return max(_LOWEST, math.floor(_RUNGS * math.log2(level / bound)))

    def _made_anew(self) -> Plan:
        """The plan, where those made so far follow something else."""
        self.learned.plans.clear()
        self._savings = {}
        return self._current()

    def _current(self) -> Plan:
        return self._at(self._rung())

    def _at(self, rung: int | None) -> Plan:
        """The plan of a rung; of None, what the budget asks for, or the bound where nothing is measured."""
        budget = self._budget
        held = (
            f"{self._key} budget={budget} bound={self._max_drift} feedback={self._fraction > 0} rung={rung}"
        )
        return self.learned.plan(held, lambda: self._make(rung, budget))

    def _make(self, rung: int | None, budget: float | None) -> Plan:
        profile = self.learned.beliefs.applied(self._profile)
        break_even = {gate: time.break_even for gate, time in self._times().items()}
        return plan_that_pays(profile, budget, self._allowed(rung), break_even)

    def _allowed(self, rung: int | None) -> float | None:
        """The drift that a plan may be predicted to have on a rung."""
        if rung is None or self.regulator is None:
            return None if self._fraction and self._budget is not None else self._max_drift
        if rung == _LOWEST:
            return 0.0
        return self.regulator.reach if rung == _TOP else self.regulator.bound * 2 ** (rung / _RUNGS)
