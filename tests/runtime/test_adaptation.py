"""How a plan follows what is measured."""

import math

import pytest
import torch

from srrc.control.beliefs import LARGEST, Beliefs
from srrc.control.history import Learned
from srrc.control.trail import JUDGED
from srrc.profile import GateCost, GateProfile, Joint, Profile
from srrc.runtime.adaptation import CARRIED, LEARN, REACH, Adaptation
from srrc.runtime.events import Events

FRACTIONS = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8])


def profile(*drifts: list[float]) -> Profile:
    gates = [
        GateProfile(
            id=f"channel:{index}",
            quantiles=torch.linspace(0, 1, 101),
            fractions=FRACTIONS,
            drift=torch.tensor(drift),
            error=torch.zeros(5),
            kept_low=torch.zeros(5),
            cost=GateCost(units=100, flops=2.0, bytes=2.0, overhead=0.0),
        )
        for index, drift in enumerate(drifts)
    ]
    return Profile(
        {gate.id: gate for gate in gates}, (), joint=(Joint(1e-4, 1e-4, 0.0), Joint(1.0, 1.0, 0.0))
    )


BOTH = profile([0.0, 0.004, 0.012, 0.03, 0.1], [0.0, 0.006, 0.02, 0.05, 0.2])


def adaptation(
    max_drift: float | None = 0.02, feedback: float = 1.0, events: Events | None = None
) -> Adaptation:
    return Adaptation("graph", Learned(), BOTH, max_drift, feedback, dict, events or Events())


def test_it_begins_well_under_the_bound_and_grows_into_the_budget() -> None:
    held = adaptation()
    first = held.plan(0.5)
    assert 0 < first.drift <= 0.02 / 4 * 1.001
    plans = [plan for plan in (held.measured(call, 0.0) for call in range(300)) if plan is not None]
    assert [plan.spent for plan in plans] == sorted((plan.spent for plan in plans), reverse=True)
    assert plans[-1].spent == pytest.approx(0.5, abs=0.01) or plans[-1].drift > 0.99 * REACH * 0.02


def test_drift_closes_it_and_calm_opens_it_again() -> None:
    events = Events()
    held = adaptation(events=events)
    held.plan(0.5)
    for call in range(100):
        held.measured(call, 0.005)
    assert held.regulator is not None
    grown = held.regulator.level
    plans = [held.measured(call, 1.0) for call in range(100, 104)]
    assert plans[-1] is not None or plans[0] is not None
    dense = next(plan for plan in reversed(plans) if plan is not None)
    assert not dense.fractions
    assert held.regulator.level < 0 < grown
    assert held.due()  # alarmed, whatever the fraction
    for call in range(104, 400):
        held.measured(call, 0.0)
    assert held.regulator.level > 0
    assert {"alarm", "calm", "plan"} <= events.counts().keys()
    assert str(events.all()[0]).startswith("call ")


def test_a_drift_that_is_no_number_closes_it() -> None:
    held = adaptation()
    held.plan(0.5)
    plan = held.measured(1, math.nan)
    assert plan is not None
    assert not plan.fractions


def test_without_feedback_the_bound_is_the_plans_own() -> None:
    held = adaptation(feedback=0.0)
    assert held.plan(0.5).drift == pytest.approx(0.02, rel=0.01)
    assert held.regulator is None
    assert not any(held.due() for _ in range(100))


def test_without_a_bound_nothing_is_moved() -> None:
    held = adaptation(max_drift=None)
    assert held.plan(0.5).met
    assert held.measured(1, 5.0) is None


def test_about_the_asked_fraction_is_measured_and_no_pattern_can_dodge_it() -> None:
    held = adaptation(feedback=0.1, max_drift=None)
    due = [held.due() for _ in range(5000)]
    assert 400 < sum(due) < 600
    assert len({due.index(True, start) - start for start in range(0, 4000, 100)}) > 5


def test_another_budget_keeps_the_level() -> None:
    held = adaptation()
    held.plan(0.5)
    for call in range(60):
        held.measured(call, 0.0)
    assert held.regulator is not None
    level = held.regulator.level
    held.plan(0.6)
    assert held.regulator.level == min(level, held.regulator.reach)


def test_exploring_moves_what_is_believed_and_then_the_plan() -> None:
    held = adaptation(max_drift=None)
    first = made = held.plan(0.6)
    before = first.fractions["channel:0"]
    for call in range(2000):  # step by step, each of which does no harm
        held.measured(call, made.drift)
        trial = held.trial(made)
        if trial is not None:
            worse = 30.0 if trial.gate == "channel:0" else 1.0
            made = held.explored(call, trial, worse * trial.expected / CARRIED) or made
    assert made.fractions["channel:0"] < before
    assert made.fractions["channel:1"] > first.fractions["channel:1"]


def test_a_step_that_makes_drift_grow_is_taken_back() -> None:
    events = Events()
    held = adaptation(max_drift=None, events=events)
    plan = held.plan(0.6)
    for call in range(JUDGED):
        assert held.measured(call, plan.drift) is None
    made = None
    while made is None:
        trial = held.trial(plan)
        if trial is not None:
            made = held.explored(
                1, trial, 5 * trial.expected if trial.gate == "channel:0" else trial.expected
            )
    assert made.fractions != plan.fractions
    back = [held.measured(call, 3 * made.drift) for call in range(JUDGED)]
    assert [each for each in back if each is not None] == [back[-1]]
    assert back[-1] == plan
    assert events.counts()["rollback"] == events.counts()["step"] == 1


def test_beliefs_explore_all_closed_gates_and_survive_being_kept() -> None:
    beliefs, plan = Beliefs(), adaptation(max_drift=None).plan(0.6)
    seen = set()
    for _ in range(16 * LEARN):
        gate = beliefs.next(BOTH, plan)
        assert gate is not None
        seen.add(gate)
        beliefs.explored(gate, 0.01, 0.02)
    assert seen == set(plan.fractions)
    assert 1.5 < beliefs.factor("channel:0") < 2.0
    assert Beliefs.of(beliefs.state()).factor("channel:0") == beliefs.factor("channel:0")
    beliefs.explored("channel:0", 0.01, math.inf)
    assert beliefs.factor("channel:0") <= LARGEST
