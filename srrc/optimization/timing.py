"""How long files take, and what each gate of a file saves and costs: read off with groups of gates closed in turn."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.session import Session
from srrc.optimization.plan import CLOSED, Saving
from srrc.optimization.reader import Reader

LOADS = 3
"""How often files are loaded where one is compared with the other."""

Feeds = Sequence[Mapping[str, Tensor]]

Variant = tuple[Session, Mapping[str, Tensor]]
"""A file, and inputs that every call of it gets beside its own."""


def time_variants(variants: Mapping[str, Variant], feeds: Feeds, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: `rounds` calls of each variant, in turn, going round the feeds, after one not counted."""
    for session, extra in variants.values():
        session.run({**feeds[0], **extra})
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        feed = feeds[number % len(feeds)]
        for name, (session, extra) in variants.items():
            started = time.perf_counter()
            session.run({**feed, **extra})
            found[name].append(time.perf_counter() - started)
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of calls that were made in turn."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def over_loads(
    theirs: Session, ours: Session, extra: Mapping[str, Tensor], feeds: Feeds, rounds: int
) -> dict[str, float]:
    """{"dense", "gated"}: median seconds of calls, and "ratio": the median of their ratios, over several loads.

    Where a file's weights happen to lie in memory makes a twentieth of its time. So both are loaded anew, in either
    order. extra: what every call of `ours` gets beside its own
    """
    found: dict[str, list[float]] = {"dense": [], "gated": []}
    for load in range(LOADS):
        if load > 0:
            theirs.release()
            ours.release()
            for session in (ours, theirs) if load % 2 else (theirs, ours):
                session.load()
        times = time_variants({"dense": (theirs, {}), "gated": (ours, extra)}, feeds, rounds)
        found = {name: seconds + times[name] for name, seconds in found.items()}
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return medians | {"ratio": ratios(found["gated"], found["dense"])}


def latencies(reader: Reader, dense: Session, gated: Session, rounds: int) -> dict[str, dict[str, float]]:
    """By phase: median seconds of a call of both files, and the median of their ratio, call by call."""
    return {
        calls.phase: over_loads(dense, gated, {}, calls.feeds, max(rounds, len(calls.feeds)))
        for calls in reader.calls()
    }


def measure_savings(
    dense: Session,
    gated: Session,
    feeds: Feeds,
    gates: Sequence[str],
    groups: Mapping[str, object],
    rounds: int,
) -> tuple[float, dict[str, Saving]]:
    """(seconds of the dense call, what each gate saves and costs).

    gates:  ids in the order of the file's thresholds
    groups: gate id -> what is equal for gates that save alike, the same branch in other layers
    """
    limits = {"open": torch.full((len(gates),), -1.0)}
    members: dict[object, list[int]] = {}
    for index, gate in enumerate(gates):
        members.setdefault(groups[gate], []).append(index)
    for group, indices in members.items():
        limits[repr(group)] = limits["open"].index_fill(0, torch.tensor(indices), CLOSED)
    opened = over_loads(dense, gated, {THRESHOLDS: limits["open"]}, feeds, rounds)
    overhead = opened["dense"] * max(0.0, opened["ratio"] - 1.0) / len(gates)
    timed = time_variants({name: (gated, {THRESHOLDS: each}) for name, each in limits.items()}, feeds, rounds)
    # Ratios of calls made in turn: what else runs on the machine slows both.
    whole = opened["dense"] * opened["ratio"]
    savings = {
        gates[index]: Saving(
            whole * (1.0 - ratios(timed[repr(group)], timed["open"])) / len(indices), overhead
        )
        for group, indices in members.items()
        for index in indices
    }
    return opened["dense"], {gate: savings[gate] for gate in gates}
