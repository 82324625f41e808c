"""Ties a compiled graph to its profile: what may be gated, which plan the gates follow, when they are not trusted."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from srrc.control import controller
from srrc.control.plan import Plan
from srrc.errors import OptionError, ProfileError
from srrc.options import Options
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile
from srrc.reasons import Reason, Refusal
from srrc.runtime.compiled_graph import CompiledGraph
from srrc.runtime.fallback import fall_back
from srrc.runtime.gates import set_records
from srrc.runtime.watch import WeightWatch

FUEL_VARIABLE = "SRRC_FUEL"
"""Environment variable: insert only the first so many gates, to find a bad one by bisection."""


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


def gate_source(profile: Profile, names: Mapping[str, str], weights: Mapping[str, torch.Tensor]) -> GateSource:
    """What gates are made from. names, weights: by placeholder. Raises ProfileError for a profile of other weights."""
    profile.check({names[placeholder]: weight for placeholder, weight in weights.items()})
    return GateSource(covers=profile.covers, weights=weights, vectors=profile.vectors, fuel=fuel())


def route(graph: CompiledGraph, profile: Profile) -> None:
    """Give `graph` the plan for its options, and the means to make another."""
    options = graph.options

    def replan(budget: float | None) -> Plan:
        return controller.plan(profile, budget=budget, max_drift=options.max_drift)

    graph.replan = replan
    graph.plan = replan(options.budget)
    set_records(graph.gates, graph.plan.thresholds)


def guard_weights(graph: CompiledGraph, profile: Profile, weights: Mapping[str, torch.Tensor]) -> Callable[[], None]:
    """A check to make before each call: gates stay open for good once the weights are not the profile's any more.

    weights: by name in the model. An edit that leaves the profile fitting (the same weights loaded again) changes
    nothing.
    """
    watch = WeightWatch(weights)

    def check() -> None:
        if not watch.changed() or graph.stale:
            return
        try:
            profile.check(watch.weights())
        except ProfileError as error:
            graph.stale = True
            set_records(graph.gates, {})
            fall_back(graph, Refusal("every gate", "graph", Reason.STALE_PROFILE, str(error)))

    return check


def fuel() -> int | None:
    """How many gates `SRRC_FUEL` allows; None for all. Raises OptionError where it is no whole number."""
    given = os.environ.get(FUEL_VARIABLE)
    if given is None:
        return None
    if not given.isdigit():
        raise OptionError(f"{FUEL_VARIABLE}={given!r} is not a whole number of gates")
    return int(given)


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Profile:
    return Profile.load(path)
