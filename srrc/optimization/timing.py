"""How long files take, and what each gate of a file saves and costs: read off with groups of gates closed in turn."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.session import Session
from srrc.optimization.plan import Saving
from srrc.optimization.reader import Reader

CLOSED = 1e30
"""A threshold that drops everything."""

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


def latencies(reader: Reader, dense: Session, gated: Session, rounds: int) -> dict[str, dict[str, float]]:
    """By phase: median seconds of a call of both files, and the median of their ratio, call by call."""
    found = {}
    for calls in reader.calls():
        count = max(rounds, len(calls.feeds))
        times = time_variants({"dense": (dense, {}), "gated": (gated, {})}, calls.feeds, count)
        medians = {name: statistics.median(each) for name, each in times.items()}
        found[calls.phase] = medians | {"ratio": ratios(times["gated"], times["dense"])}
    return found


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
    variants: dict[str, Variant] = {"dense": (dense, {})}
    variants |= {name: (gated, {THRESHOLDS: each}) for name, each in limits.items()}
    timed = time_variants(variants, feeds, rounds)
    # Ratios of calls made in turn: what else runs on the machine slows both.
    whole = statistics.median(timed["dense"])
    times = {name: whole * ratios(seconds, timed["dense"]) for name, seconds in timed.items()}
    overhead = max(0.0, times["open"] - times["dense"]) / len(gates)
    savings = {
        gates[index]: Saving((times["open"] - times[repr(group)]) / len(indices), overhead)
        for group, indices in members.items()
        for index in indices
    }
    return times["dense"], {gate: savings[gate] for gate in gates}
