import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.joint import Correction
from srrc.profile import Joint

NATS = st.floats(1e-6, 10)
POINTS = st.lists(st.builds(Joint, NATS, NATS, st.just(0.0)), max_size=6)


@given(POINTS, st.lists(st.floats(0, 20), min_size=2, max_size=2).map(sorted))
def test_it_never_descends(points: list[Joint], pair: list[float]) -> None:
    correction = Correction(points)
    assert correction.predict(pair[0]) <= correction.predict(pair[1]) * (1 + 1e-9) + 1e-15


@given(POINTS, st.floats(1e-5, 5))
def test_what_is_allowed_is_predicted_to_stay_within(points: list[Joint], drift: float) -> None:
    correction = Correction(points)
    allowed = correction.allowed(drift)
    assert correction.predict(allowed) <= drift * (1 + 1e-9)
    assert correction.predict(allowed * 1.01 + 1e-9) >= drift * (1 - 1e-9)


def test_measured_points_are_met_and_ratios_hold_beyond() -> None:
    correction = Correction([Joint(0.1, 0.3, 0), Joint(0.01, 0.02, 0)])
    assert correction.predict(0.01) == pytest.approx(0.02)
    assert correction.predict(0.1) == pytest.approx(0.3)
    assert correction.predict(0.001) == pytest.approx(0.002)
    assert correction.predict(0.2) == pytest.approx(0.6)
    assert correction.predict(0.0) == 0.0


def test_without_points_the_sum_stands() -> None:
    assert Correction([]).predict(0.25) == 0.25
    assert Correction([]).allowed(0.25) == pytest.approx(0.25)
    assert Correction([]).allowed(0.0) == 0.0
