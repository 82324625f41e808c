"""A plan of only those gates that save time on this machine."""

import dataclasses
from collections.abc import Mapping

from srrc.control import controller
from srrc.control.plan import Plan
from srrc.profile import Profile


def plan_that_pays(
    profile: Profile, budget: float | None, max_drift: float | None, break_even: Mapping[str, float]
) -> Plan:
    """The controller's plan, without gates that would drop too little to save time on this machine.

    break_even: gate id -> fraction dropped from which on the gate saves time, as measured
    What those gates would have saved is asked of the others, as far as that costs no more drift than the budget was
    predicted to cost: timings are noisy, and a budget's quality must not hang on them. The next plan may ask too little
    of another gate, and so on until every gate pays.
    """
    losing: set[str] = set()
    allowed = max_drift
    phases = controller.default_phases(profile)
    while True:
        plan = controller.plan(profile, budget=budget, max_drift=allowed, phases=phases)
        allowed = plan.drift if allowed is None else min(allowed, plan.drift)
        found = {gate for gate, fraction in plan.fractions.items() if fraction <= break_even.get(gate, 0.0)}
        if not found:
            return dataclasses.replace(plan, max_drift=max_drift, reverted=frozenset(losing))
        losing |= found
        phases = {
            name: dataclasses.replace(
                phase, gates={gate: cost for gate, cost in phase.gates.items() if gate not in losing}
            )
            for name, phase in phases.items()
        }
