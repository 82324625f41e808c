"""Plans that pay on this machine."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.controller import plan
from srrc.control.paying import plan_that_pays
from srrc.profile import GateCost, GateProfile, Profile

COST = GateCost(units=100, flops=2.0, bytes=2.0, overhead=0.0)


def profile(*drifts: list[float]) -> Profile:
    gates = [
        GateProfile(
            id=f"channel:{index}",
            quantiles=torch.linspace(0, 1, 101),
            fractions=torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8]),
            drift=torch.tensor(drift),
            error=torch.zeros(5),
            kept_low=torch.zeros(5),
            cost=COST,
        )
        for index, drift in enumerate(drifts)
    ]
    return Profile({gate.id: gate for gate in gates}, ())


CHEAP, DEAR = [0.0, 0.1, 0.2, 0.4, 0.9], [0.0, 0.15, 0.5, 1.0, 2.0]


def test_what_a_losing_gate_would_save_is_asked_of_the_others_for_no_more_drift():
    both = profile(CHEAP, DEAR)
    free = plan(both, budget=0.7)
    assert free.fractions["channel:1"] > 0
    paying = plan_that_pays(both, 0.7, None, {"channel:0": 0.05, "channel:1": 0.3})
    assert paying.reverted == {"channel:1"}
    assert set(paying.thresholds["decode"]) == {"channel:0"}
    assert paying.fractions["channel:0"] > free.fractions["channel:0"]
    assert paying.drift == pytest.approx(free.drift)
    assert paying.max_drift is None
    assert free.spent < paying.spent < 1.0


def test_a_gate_that_drops_enough_stays():
    paying = plan_that_pays(profile(CHEAP), 0.5, None, {"channel:0": 0.4})
    assert paying.reverted == frozenset()
    assert paying == plan(profile(CHEAP), budget=0.5)


def test_where_nothing_pays_nothing_is_dropped():
    paying = plan_that_pays(profile(CHEAP, DEAR), 0.5, None, {"channel:0": 1.0, "channel:1": 1.0})
    assert paying.reverted == {"channel:0", "channel:1"}
    assert paying.thresholds["decode"] == {}
    assert paying.spent == 1.0
    assert not paying.met


STEPS = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(
    lambda steps: [0.0, *itertools.accumulate(steps)]
)


@given(
    st.lists(STEPS, min_size=1, max_size=5),
    st.floats(0.2, 1),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_every_gate_of_the_plan_drops_more_than_its_break_even(drifts, budget, thresholds):
    break_even = {f"channel:{index}": value for index, value in enumerate(thresholds)}
    paying = plan_that_pays(profile(*drifts), budget, None, break_even)
    assert all(fraction > break_even[gate] for gate, fraction in paying.fractions.items())
    assert not paying.reverted.intersection(paying.thresholds["decode"])
