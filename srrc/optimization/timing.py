"""What each gate of a file saves and costs, read off the file's own latency with groups of gates closed in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.session import Session
from srrc.optimization.plan import Saving

CLOSED = 1e30
"""A threshold that drops everything."""


def time_calls(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times in turn, after one that is not counted."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - started)
    return found


def measure_savings(
    dense: Session,
    gated: Session,
    feed: Mapping[str, Tensor],
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
    calls: dict[str, Callable[[], object]] = {"dense": lambda: dense.run(feed)}
    for name, each in limits.items():
        calls[name] = lambda each=each: gated.run({**feed, THRESHOLDS: each})  # type: ignore[misc]
    times = {name: statistics.median(seconds) for name, seconds in time_calls(calls, rounds).items()}
    overhead = max(0.0, times["open"] - times["dense"]) / len(gates)
    savings = {
        gates[index]: Saving((times["open"] - times[repr(group)]) / len(indices), overhead)
        for group, indices in members.items()
        for index in indices
    }
    return times["dense"], {gate: savings[gate] for gate in gates}
