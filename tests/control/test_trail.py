"""Steps of what plans follow, and their rollback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.beliefs import LARGEST, STEP, Beliefs
from srrc.control.trail import JUDGED, WORSE, Trail


def taught(factor: float = 4.0) -> Beliefs:
    beliefs = Beliefs()
    for _ in range(64):
        beliefs.explored("gate", 0.01, factor * 0.01)
    return beliefs


def feed(trail: Trail, beliefs: Beliefs, ratio: float, count: int = JUDGED) -> list[bool]:
    return [trail.measured(ratio * 0.02, 0.02, beliefs) for _ in range(count)]


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=40), st.integers(1, 12))
def test_no_step_is_longer_than_it_may_be_and_steps_arrive(measured: list[float], steps: int) -> None:
    beliefs = Beliefs()
    for each in measured:
        beliefs.explored("gate", 0.5, each)
    before = 1.0
    for _ in range(steps):
        beliefs.step()
        now = beliefs.followed["gate"]
        assert before / STEP * (1 - 1e-9) <= now <= before * STEP * (1 + 1e-9)
        assert abs(now - beliefs.factor("gate")) <= abs(before - beliefs.factor("gate")) + 1e-9
        before = now
    for _ in range(12):
        beliefs.step()
    assert beliefs.followed["gate"] == beliefs.factor("gate") <= LARGEST


def test_a_step_after_which_drift_grows_is_taken_back() -> None:
    trail, beliefs = Trail(), taught()
    feed(trail, beliefs, 1.0)
    trail.step(beliefs)
    assert beliefs.followed == {"gate": STEP}
    assert trail.judging
    back = feed(trail, beliefs, 1.1 * WORSE)
    assert back == [False] * (JUDGED - 1) + [True]
    assert beliefs.followed == {}
    assert beliefs.factor("gate") > 3  # what was seen is not forgotten
    assert not trail.judging


@pytest.mark.parametrize("ratio", [0.2, 1.0, 0.99 * WORSE])
def test_a_step_that_does_no_harm_stands(ratio: float) -> None:
    trail, beliefs = Trail(), taught()
    feed(trail, beliefs, 1.0)
    trail.step(beliefs)
    assert not any(feed(trail, beliefs, ratio))
    assert beliefs.followed == {"gate": STEP}
    assert not trail.judging
    trail.step(beliefs)
    assert beliefs.followed == {"gate": STEP**2}
    feed(trail, beliefs, 10 * max(ratio, 1.0))
    assert beliefs.followed == {"gate": STEP}  # back to the step before


def test_a_first_step_that_nothing_was_measured_before_stands() -> None:
    trail, beliefs = Trail(), taught()
    trail.step(beliefs)
    assert not any(feed(trail, beliefs, 100.0))
    assert beliefs.followed == {"gate": STEP}


def test_calls_of_a_plan_with_no_drift_say_nothing() -> None:
    trail, beliefs = Trail(), taught()
    trail.step(beliefs)
    assert not any(trail.measured(0.0, 0.0, beliefs) for _ in range(2 * JUDGED))
    assert trail.judging
