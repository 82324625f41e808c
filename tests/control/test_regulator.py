"""The regulator's guarantee, on drifts that are drawn to break it."""

import math

from hypothesis import given
from hypothesis import strategies as st

from srrc.control.regulator import ALARM_CALLS, Regulator

DRIFTS = st.lists(
    st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.just(math.inf), st.just(math.nan)),
    min_size=1,
    max_size=400,
)


@given(DRIFTS, st.floats(1e-3, 0.1), st.floats(0.5, 4.0))
def test_no_texts_make_the_mean_of_any_run_of_calls_exceed_the_promise(
    drifts: list[float], bound: float, reach: float
) -> None:
    regulator = Regulator(bound, reach * bound)
    counted = []
    for drift in drifts:  # any drift at all while a gate may be closed, none while all are open
        seen = 0.0 if regulator.level <= 0 else drift
        regulator.measured(seen)
        counted.append(min(seen, regulator.ceiling) if not math.isnan(seen) else regulator.ceiling)
    for start in range(0, len(counted), 7):
        for stop in range(start + 1, len(counted) + 1, 11):
            run = counted[start:stop]
            assert sum(run) / len(run) <= regulator.promise(len(run)) * (1 + 1e-9)


def test_it_starts_low_and_rises_as_far_as_it_may() -> None:
    regulator = Regulator(0.02, 0.05)
    assert regulator.level == 0.005
    for _ in range(1000):
        regulator.measured(0.0)
    assert regulator.level == 0.05


def test_it_settles_where_drift_is_the_bound() -> None:
    regulator = Regulator(0.02, 0.08)
    for _ in range(400):
        regulator.measured(max(0.0, 0.6 * regulator.level))  # texts that drift by 0.6 of what is predicted
    assert abs(0.6 * regulator.level - 0.02) < 0.001


def test_a_sudden_change_is_answered_within_few_measurements() -> None:
    regulator = Regulator(0.02, 0.08, level=0.02)
    calls = 0
    while 10 * regulator.level > 0.02 * 1.1:  # texts that drift ten times what is predicted
        regulator.measured(10 * max(regulator.level, 0.0))
        calls += 1
        assert calls < 10
    assert regulator.alarmed or calls < ALARM_CALLS


def test_an_alarm_lasts_and_ends() -> None:
    regulator = Regulator(0.02, 0.08)
    regulator.measured(1.0)
    for _ in range(ALARM_CALLS):
        assert regulator.alarmed
        regulator.measured(0.0)
    assert not regulator.alarmed
