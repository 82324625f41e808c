"""Phase 2, router pre-training: gates learn from traces of the full model what its output hangs on.

No weight changes, and no gradient step is taken: probes are solved for (`traces.py`). How strongly they should count is
measured, because a drift of second order is no longer one where half of the units are dropped: of a few powers, the one
whose plans drift least on batches that no probe was fitted to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srrc.control.controller import plan
from srrc.gated_model import GatedModel
from srrc.profile import Profile
from srrc.relevance.drift import Drift, Reference
from srrc.training.batches import Batches
from srrc.training.deciding import AtFractions
from srrc.training.routed import Routed, constant
from srrc.training.router import Fixed
from srrc.training.traces import Traces

POWERS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Of the Fisher information, that scores are multiplied by; half is what second order alone would say."""

BUDGETS = (0.65, 0.5)
"""Whose plans tell which power is best."""


@dataclass(frozen=True)
class Traced:
    """What pre-training found.

    vectors:   "GATE/emphasis" -> float32 [K + 1]
    power:     that was chosen; 0 where emphasis did no good: there are no vectors then
    drifts:    power -> mean drift of the plans at `BUDGETS`, nats a token
    explained: mean share of the target's variance that the probes explain
    """

    vectors: Mapping[str, Tensor]
    power: float
    drifts: Mapping[float, tuple[float, ...]]
    explained: float


def pretrain(
    gated: GatedModel,
    profile: Profile,
    batches: Batches,
    call: Callable[[Tensor], Any],
    *,
    steps: int,
    checks: int,
    progress: Callable[[str], None] = lambda what: None,
) -> Traced:
    """Fit emphasis for the gates of `profile`, which stand in `gated`.

    call:   makes one call of the model of a batch
    steps:  batches that are traced; checks: batches after those that the power is chosen on
    """
    routed = Routed(gated)
    traces = Traces(routed)
    for number in range(steps):
        draw = torch.Generator().manual_seed(number)
        traces.add(constant(gated.arguments(call(batches(number)))), draw)
        progress("traces")
    probes = _for_all_gates(routed, traces.probes())
    explained = traces.explained()
    fractions = [plan(profile, budget=budget).fractions for budget in BUDGETS]
    found = {power: [Drift()] * len(fractions) for power in POWERS}
    with torch.no_grad():
        for number in range(steps, steps + checks):
            arguments = gated.arguments(call(batches(number)))
            reference = Reference(routed.outputs(arguments, None)[:, 1:], gated.how)
            for power in POWERS:
                fixed = Fixed({gate: power * probe for gate, probe in probes.items()}) if power else None
                for index, dropped in enumerate(fractions):
                    given = routed.outputs(arguments, AtFractions(dropped, fixed))
                    found[power][index] += reference.drift(given[:, 1:])
                progress(f"power {power:g}")
    drifts = {power: tuple(each.mean for each in held) for power, held in found.items()}
    plain = drifts[0.0]
    best = min(drifts, key=lambda power: sum(d / p for d, p in zip(drifts[power], plain, strict=True)))
    vectors = {f"{gate}/emphasis": best * probe for gate, probe in probes.items()} if best else {}
    return Traced(vectors, best, drifts, sum(explained.values()) / max(1, len(explained)))


def _for_all_gates(routed: Routed, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The probe of an op, for each of its gates."""
    return {gate: probes[ids[0]] for ids in routed.ops for gate in ids if ids[0] in probes}
