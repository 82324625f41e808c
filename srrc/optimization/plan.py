"""Which gates an ONNX model gets, and at which thresholds: the controller, with costs measured in ONNX Runtime."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from srrc.control import controller
from srrc.control.plan import PhaseCost, Plan
from srrc.passes.gating.residual import COARSE
from srrc.profile import GateCost, GateProfile, Profile

BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)
"""Budgets that the report gives thresholds for, as far as the file's gates go."""


CLOSED = 1e30
"""A threshold that drops everything."""


@dataclass(frozen=True)
class Saving:
    """What a gate saves when it drops everything, and costs by being there: seconds of one call."""

    saved: float
    overhead: float


@dataclass(frozen=True)
class Measured:
    """What gates do to one call of a file.

    dense:    seconds of the call without any
    savings:  gate id -> what it saves and costs
    branches: gate id -> the branch that it is on, for those that are on one. A branch has one gate: two would stand one
              inside of the other, and in an `If` inside of an `If` ONNX Runtime packs no weights
    """

    dense: float
    savings: Mapping[str, Saving]
    branches: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GatePlan:
    """What a file is to do.

    plan:       the controller's
    thresholds: gate id -> threshold, for the gates that the file gets
    left_out:   gate id -> why it gets none
    """

    plan: Plan
    thresholds: Mapping[str, float]
    left_out: Mapping[str, str]


def make_plan(
    profile: Profile, measured: Measured, budget: float | None, max_drift: float | None
) -> GatePlan:
    """The plan over the gates that were measured.

    A gate that saves less than it costs is left out, and so is one that the plan does not use.
    """
    savings = measured.savings
    paying = {gate: each for gate, each in savings.items() if each.saved > each.overhead}
    left_out = dict.fromkeys(savings.keys() - paying.keys(), "measured slower in ONNX Runtime")
    profile = _to_the_end(profile)
    while True:
        phase = PhaseCost(
            0.0, measured.dense, {gate: _cost(profile.gates[gate], each) for gate, each in paying.items()}
        )
        plan = controller.plan(profile, budget=budget, max_drift=max_drift, phases={"decode": phase})
        second = _second_gates(plan, measured)
        if not second:
            break
        paying = {gate: each for gate, each in paying.items() if gate not in second}
        left_out |= dict.fromkeys(second, "its branch has another gate: one inside of another is slow")
    records = plan.thresholds["decode"]
    left_out |= dict.fromkeys(paying.keys() - records.keys(), "the budget is reached without it")
    whole = {gate for gate, fraction in plan.fractions.items() if gate.endswith(COARSE) and fraction >= 1.0}
    thresholds = {
        gate: _beyond(profile.gates[gate]) if gate in whole else records[gate][0]
        for gate in savings
        if gate in records
    }
    return GatePlan(plan, thresholds, left_out)


def _second_gates(plan: Plan, measured: Measured) -> set[str]:
    """Of gates that the plan puts on one branch, all but one: that with coarse weights, or the one that saves most.

    Coarse weights cost a hundredth of the drift; what they save is most of a branch.
    """
    best: dict[str, str] = {}
    worth = {
        gate: (gate.endswith(COARSE), fraction * measured.savings[gate].saved)
        for gate, fraction in plan.fractions.items()
    }
    for gate, own in worth.items():
        branch = measured.branches.get(gate, gate)
        if branch not in best or own > worth[best[branch]]:
            best[branch] = gate
    return worth.keys() - best.values()


def other_budgets(
    profile: Profile,
    measured: Measured,
    plan: GatePlan,
    max_drift: float | None,
    also: Sequence[float] = (),
) -> dict[float, list[float]]:
    """Budget -> thresholds of the file's gates, for budgets down to the plan's, which is there, too; 1.0 opens all.

    also: budgets that are wanted anyway; one that is out of reach saves what can be saved
    """
    found = {1.0: [-1.0] * len(plan.thresholds)}
    kept = {gate: measured.savings[gate] for gate in plan.thresholds}
    wanted = [budget for budget in BUDGETS if budget >= plan.plan.spent - 0.005]
    for budget in sorted({*wanted, *also} - {1.0}, reverse=True):
        made = make_plan(profile, dataclasses.replace(measured, savings=kept), budget, max_drift)
        found[budget] = [made.thresholds.get(gate, -1.0) for gate in plan.thresholds]
    if plan.thresholds:
        found.setdefault(round(plan.plan.spent, 2), [*plan.thresholds.values()])
    return dict(sorted(found.items(), reverse=True))


def _cost(gate: GateProfile, saving: Saving) -> GateCost:
    """The gate's cost in seconds, where a cost has bytes: with no FLOPs beside them, they are what counts.

    A head does the same whatever it drops, so all that it saves, it saves by being closed.
    """
    whole = saving.saved - saving.overhead
    if gate.kind == "vocab":
        return GateCost(gate.cost.units, 0.0, 0.0, 0.0, spared_bytes=whole)
    units = gate.cost.units
    return GateCost(units, 0.0, saving.saved / units, 0.0, fixed_bytes=saving.overhead)


def _to_the_end(profile: Profile) -> Profile:
    """The profile with coarse gates' curves continued to where all that was calibrated is dropped.

    Then only what calibration has not seen, a score well above all of its scores, has its branch computed in full.
    """
    gates = {
        name: _continued(gate) if name.endswith(COARSE) else gate for name, gate in profile.gates.items()
    }
    return dataclasses.replace(profile, gates=gates)


def _beyond(gate: GateProfile) -> float:
    """The threshold of a gate that is to drop all that was calibrated: half as far again from the median as the
    largest score, by their logarithms.

    A token in a few hundred is above the largest of a few hundred scores, and one such token has the whole branch run
    beside its coarse copy.
    """
    median, largest = float(gate.quantiles[len(gate.quantiles) // 2]), float(gate.quantiles[-1])
    if median <= 0:
        return largest
    return min(largest * math.sqrt(max(1.0, largest / median)), CLOSED)


def _continued(gate: GateProfile) -> GateProfile:
    last = float(gate.fractions[-1])
    if last >= 1.0:
        return gate

    def grown(values: torch.Tensor) -> torch.Tensor:
        return torch.cat((values, values[-1:] / last))

    return dataclasses.replace(
        gate,
        fractions=torch.cat((gate.fractions, torch.ones(1))),
        drift=grown(gate.drift),
        error=grown(gate.error),
        kept_low=torch.cat((gate.kept_low, torch.zeros(1))),
    )
