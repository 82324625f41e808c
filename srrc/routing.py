"""Ties a compiled graph to its profile: what may be gated, which plan the gates follow, when they are not trusted."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from srrc.control import controller
from srrc.control.plan import Plan
from srrc.errors import OptionError, ProfileError
from srrc.fuel import fuel
from srrc.options import Options
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile
from srrc.reasons import Reason, Refusal
from srrc.runtime.asked_budget import asked_budget
from srrc.runtime.compiled_graph import CompiledGraph
from srrc.runtime.fallback import fall_back
from srrc.runtime.feedback import dense_answer, drift_between, due
from srrc.runtime.gates import set_records
from srrc.runtime.watch import WeightWatch

NO_PROFILE = "this model was compiled without a profile; compile it with options={'profile': ...}"


def profile_of(options: Options) -> Profile | None:
    """The profile that the options name, read once per file. Raises ProfileError where it cannot be read."""
    given = options.profile
    if isinstance(given, Path):
        try:
            changed = given.stat().st_mtime_ns
        except OSError:
            changed = 0  # reading it says what is wrong
        return _load(given, changed)
    if given is None or isinstance(given, Profile):
        return given
    raise OptionError(f"profile={given!r} is neither a srrc.Profile nor a path of one")


def gate_source(
    profile: Profile, names: Mapping[str, str], weights: Mapping[str, torch.Tensor]
) -> GateSource:
    """What gates are made from. names, weights: by placeholder. Raises ProfileError for a profile of other weights."""
    profile.check({names[placeholder]: weight for placeholder, weight in weights.items()})
    return GateSource(covers=profile.covers, weights=weights, vectors=profile.vectors, fuel=fuel())


def route(graph: CompiledGraph, profile: Profile) -> None:
    """Give `graph` the plan for its options, and the means to make another."""
    options = graph.options

    def replan(budget: float | None) -> Plan:
        return plan_that_pays(profile, budget, options.max_drift, graph.break_even)

    asked = budget_of(graph)
    graph.replan = replan
    graph.plan = replan(options.budget if asked is None else asked)
    set_records(graph.gates, graph.plan.thresholds)


def budget_of(graph: CompiledGraph) -> float | None:
    """The budget that `set_budget` asked for before `graph` was compiled; None where it did not."""
    alive = [tensor for tensor in (reference() for reference in graph.parameters) if tensor is not None]
    return asked_budget(alive, graph.options)


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


def guard_weights(
    graph: CompiledGraph, profile: Profile, positions: Mapping[str, int], weights: Mapping[str, torch.Tensor]
) -> Callable[[Sequence[Any]], None]:
    """A check of each call's arguments: gates stay open for good once the weights are not the profile's any more.

    positions, weights: by name in the model, where each stands among the arguments, and what it is now. Those that the
    profile knows are watched, since buffers may change on every call. An edit that leaves the profile fitting (the same
    weights loaded again) changes nothing.
    """
    known = {sample.name for sample in profile.samples}
    watch = WeightWatch({name: at for name, at in positions.items() if name in known}, weights)

    def check(arguments: Sequence[Any]) -> None:
        changed = watch.changed(arguments)
        if changed is None or graph.stale:
            return
        try:
            profile.check(changed)
        except ProfileError as error:
            graph.stale = True
            set_records(graph.gates, {})
            fall_back(graph, Refusal("every gate", "graph", Reason.STALE_PROFILE, str(error)))

    return check


def watched(
    graph: CompiledGraph,
    run: Callable[..., Any],
    check: Callable[[Sequence[Any]], None],
    parameters: set[int],
) -> Callable[..., Any]:
    """What Dynamo calls of a gated graph: the weights are checked each time, ledger and feedback on sampled calls.

    parameters: ids of the tensors that `run` does not write to
    """
    fraction = graph.options.feedback

    def call(*args: Any) -> Any:
        check(args)
        number = graph.calls + 1
        if not graph.ledger.due(number) and not (fraction and due(number, fraction)):
            return run(*args)
        dense = None
        if fraction and graph.output is not None and due(number, fraction):
            dense = dense_answer(run, args, graph.gates, parameters)[graph.output[0]]
        before = graph.ledger.before(graph.gates)
        routed = run(*args)
        relevance = {} if graph.plan is None else graph.plan.relevance
        graph.ledger.after(number, graph.gates, before, relevance)
        if dense is not None and graph.output is not None:
            graph.drift.add(drift_between(dense, routed[graph.output[0]], logits=graph.output[1]))
        return routed

    return call


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Profile:
    return Profile.load(path)
