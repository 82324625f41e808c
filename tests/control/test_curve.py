import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.curve import Corner, corners, hull, segments

SHARE = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(st.tuples(SHARE, SHARE), max_size=12))
def test_the_hull_is_below_every_point_and_bends_upward(points: list[tuple[float, float]]) -> None:
    curve = [Corner(0, 0, 0), *(Corner(saved, saved, drift) for saved, drift in points)]
    bent = hull(curve)
    assert bent[0] == curve[0]
    assert set(bent) <= set(curve)
    slopes = [piece.slope for piece in segments("g", curve)]
    assert slopes == sorted(slopes)
    for point in curve:
        below = [p for p in bent if p.saved <= point.saved][-1]
        above = next((p for p in bent if p.saved >= point.saved), None)
        assert above is not None
        width = above.saved - below.saved
        share = (point.saved - below.saved) / width if width else 0
        assert point.drift >= below.drift + share * (above.drift - below.drift) - 1e-9


def test_corners_pay_for_the_gate() -> None:
    found = corners([0.0, 0.1, 0.5, 1.0], [0.0, 0.01, 0.1, 1.0], unit=0.2, fixed=0.04)
    assert found[0] == Corner(pytest.approx(0.2), 0.0, 0.0)
    assert [(point.fraction, round(point.saved, 9)) for point in found[1:]] == [(0.5, 0.06), (1.0, 0.16)]


def test_a_gate_that_saves_less_than_it_costs_has_no_segment() -> None:
    assert segments("g", corners([0.0, 0.5, 0.9], [0.0, 0.0, 0.0], unit=0.1, fixed=0.1)) == []


def test_part_of_a_segment_saves_its_share_whatever_the_gate_costs() -> None:
    unit, fixed = 0.2, 0.04
    (piece,) = segments("g", corners([0.0, 0.6], [0.0, 0.3], unit, fixed))
    for share in (0.25, 0.5, 1.0):
        point = piece.part(share)
        assert point.saved == pytest.approx(point.fraction * unit - fixed)
        assert point.drift == pytest.approx(0.3 * share)
