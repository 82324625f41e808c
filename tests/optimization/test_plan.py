"""The plan of a file: gates that pay, one a branch, thresholds for other budgets."""

import pytest
import torch

from srrc.optimization.plan import Measured, Saving, make_plan, other_budgets
from srrc.profile import GateCost, GateProfile, Profile


def gate(name: str, drift: float) -> GateProfile:
    fractions = torch.tensor([0.0, 0.5, 0.95])
    return GateProfile(
        name,
        quantiles=torch.linspace(0, 1, 21),
        fractions=fractions,
        drift=fractions * drift,
        error=torch.zeros(3),
        kept_low=torch.zeros(3),
        cost=GateCost(1, 1.0, 1.0),
    )


def profile(**drifts: float) -> Profile:
    gates = {name: gate(name, drift) for name, drift in drifts.items()}
    return Profile(gates, ())


def test_a_gate_that_costs_what_it_saves_is_left_out() -> None:
    made = make_plan(
        profile(**{"residual:a": 0.1, "residual:b": 0.1}),
        Measured(1.0, {"residual:a": Saving(0.3, 0.01), "residual:b": Saving(0.01, 0.02)}),
        budget=0.8,
        max_drift=None,
    )
    assert list(made.thresholds) == ["residual:a"]
    assert made.left_out == {"residual:b": "measured slower in ONNX Runtime"}
    assert made.plan.spent == pytest.approx(0.8)
    assert made.plan.fractions["residual:a"] == pytest.approx(0.21 / 0.3, abs=1e-5)


def test_a_branch_has_one_gate_the_one_that_drifts_less() -> None:
    made = make_plan(
        profile(**{"residual:a": 0.05, "residual:a/coarse": 0.01}),
        Measured(
            1.0,
            {"residual:a": Saving(0.3, 0.001), "residual:a/coarse": Saving(0.2, 0.001)},
            {"residual:a": "a", "residual:a/coarse": "a"},
        ),
        budget=0.65,
        max_drift=None,
    )
    assert list(made.thresholds) == ["residual:a/coarse"]
    assert "another gate" in made.left_out["residual:a"]
    assert made.plan.spent == pytest.approx(0.8, abs=0.002), (
        "0.65 is out of reach, and the report says what is reached"
    )


def test_of_gates_that_leave_out_the_one_that_saves_most_stays() -> None:
    gates = ("residual:a", "neuron:m/blocks", "neuron:n/blocks")
    made = make_plan(
        profile(**dict(zip(gates, (0.5, 0.01, 0.01), strict=True))),
        Measured(
            1.0,
            dict.fromkeys(gates, Saving(0.3, 0.001)),
            {"residual:a": "a", "neuron:m/blocks": "a", "neuron:n/blocks": "b"},
        ),
        budget=0.5,
        max_drift=None,
    )
    assert set(made.thresholds) == {"neuron:m/blocks", "neuron:n/blocks"}


def test_coarse_weights_may_stand_in_for_all_that_was_calibrated() -> None:
    made = make_plan(
        profile(**{"residual:a/coarse": 0.001}),
        Measured(1.0, {"residual:a/coarse": Saving(0.5, 0.0)}),
        budget=0.4,
        max_drift=None,
    )
    assert made.plan.fractions == {"residual:a/coarse": 1.0}
    assert made.thresholds["residual:a/coarse"] == pytest.approx(2**0.5), (
        "well above every score that was seen runs in full"
    )


def test_a_head_saves_by_being_closed() -> None:
    made = make_plan(
        profile(**{"vocab:h": 0.001}),
        Measured(1.0, {"vocab:h": Saving(0.2, 0.01)}),
        budget=0.9,
        max_drift=None,
    )
    assert made.thresholds["vocab:h"] >= 0
    assert made.plan.spent == pytest.approx(0.81)


def test_other_budgets_end_where_the_file_does_and_open_everything_at_one() -> None:
    held = profile(**{"residual:a": 0.1, "residual:b": 0.3})
    measured = Measured(1.0, {name: Saving(0.2, 0.0) for name in held.gates})
    made = make_plan(held, measured, budget=0.75, max_drift=None)
    found = other_budgets(held, measured, made, None)
    assert list(found) == [1.0, 0.95, 0.9, 0.85, 0.8, 0.75]
    assert found[1.0] == [-1.0, -1.0]
    first = [limits[0] for limits in found.values()]
    assert first == sorted(first)
    assert made.plan.spent == pytest.approx(0.75)
    between = make_plan(held, measured, budget=0.72, max_drift=None)
    found = other_budgets(held, measured, between, None, also=(0.65,))
    assert list(found)[-3:] == [0.75, 0.72, 0.65]
    assert found[0.72] == [*between.thresholds.values()]


def test_drift_wins_over_the_budget() -> None:
    made = make_plan(
        profile(**{"residual:a": 0.1}),
        Measured(1.0, {"residual:a": Saving(0.5, 0.0)}),
        budget=0.6,
        max_drift=0.02,
    )
    assert made.plan.drift <= 0.02 + 1e-6
    assert made.plan.spent > 0.6
