"""What each gate takes and saves on this machine: measured on its own op, its own weights, before it is trusted.

A gate is never slower for nothing: deciding costs time, and skipping must save more. For each gate the op is timed
open, and with thresholds that drop nothing, a quarter and a half; the line from point to point tells from which
fraction on it beats the open op. A plan that asks for less leaves the gate open. One line from nothing to a half would
flatter what lies between: rows are read with gaps between them, which memory serves worse than a stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

from srrc.control.gate_time import MASKED, GateTime
from srrc.runtime.gates import OPEN, Gate

K = TypeVar("K")

ROUNDS = 5
"""Times each setting is timed; the settings take turns, and so do the gates, so that weights come from memory. The
quickest counts: on a busy machine the others tell of the machine."""

FRACTIONS = (0.0, 0.25, 0.5)
"""Of units dropped, at which a gate is timed."""


@dataclass(frozen=True)
class GatedCall:
    """One gated op with its real weights and an input of the right shape: `run()` calls it.

    Ops of one `shape` (op and argument shapes) cost the same, so what is measured on them is put together.
    """

    run: Callable[[], object]
    gates: Sequence[Gate]
    shape: str = ""


@dataclass(frozen=True)
class BranchCall:
    """A layer gate as a call that decides, and the region it stands before as one that runs it, on inputs of the
    right shape. Regions of one `shape` cost the same.
    """

    decide: Callable[[], object]
    run: Callable[[], object]
    gate: Gate
    shape: str = ""


def branch_times(
    calls: Sequence[BranchCall], gates: Sequence[Gate] = (), clock: Callable[[], float] = perf_counter
) -> dict[str, GateTime]:
    """Gate id -> times by the fraction of tokens that skip the branch: deciding, which each token pays, and running the
    region, which the skipped ones do not.

    gates: those of the graph. One on a branch that has no region, and so runs all the same, never pays.
    """
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in calls]
    for _ in range(ROUNDS):
        for setting in range(2):
            for call, seen in zip(calls, times, strict=True):
                act = (call.decide, call.run)[setting]
                started = clock()
                act()
                seen[setting].append(clock() - started)
    found = _pooled([call.shape for call in calls], times)
    masked = {gate.id: MASKED for gate in gates if gate.id.startswith("residual:")}
    for call in calls:
        deciding, running = found[call.shape]
        dropping = ((0.0, running + deciding), (1.0, deciding))
        masked[call.gate.id] = GateTime(running, dropping, call.gate.rows)
    return masked


def gate_times(calls: Sequence[GatedCall], clock: Callable[[], float] = perf_counter) -> dict[str, GateTime]:
    """Gate id -> times by the fraction of units that are dropped. Counters end where they were.

    Costs `ROUNDS` times four runs of each op, and some thirty to find thresholds: about a second for 60 ops of 0.3 ms.
    """
    pairs = [(call, gate) for call in calls for gate in call.gates if gate.flops > 0]
    pairs.sort(
        key=lambda pair: _row(*pair)
    )  # an op's gates must not follow each other: its weights would be warm
    before = {id(gate): (gate.record.clone(), gate.counters.clone()) for call in calls for gate in call.gates}
    for call in calls:
        for gate in call.gates:
            _set(gate, OPEN[0])
    settings = [(OPEN[0], *(_threshold(call, gate, f) for f in FRACTIONS)) for call, gate in pairs]
    times: list[list[list[float]]] = [[[] for _ in thresholds] for thresholds in settings]
    for _ in range(ROUNDS):
        for setting in range(1 + len(FRACTIONS)):
            for (call, gate), thresholds, seen in zip(pairs, settings, times, strict=True):
                _set(gate, thresholds[setting])
                started = clock()
                call.run()
                seen[setting].append(clock() - started)
                _set(gate, OPEN[0])
    for call in calls:
        for gate in call.gates:
            record, counters = before[id(gate)]
            gate.record.copy_(record)
            gate.counters.copy_(counters)
    pooled = _pooled([(call.shape, _row(call, gate)) for call, gate in pairs], times)
    found = {}
    for call, gate in pairs:
        opened, *dropping = pooled[call.shape, _row(call, gate)]
        found[gate.id] = GateTime(opened, tuple(zip(FRACTIONS, dropping, strict=True)), gate.rows)
    return found


def _pooled(keys: Sequence[K], times: Sequence[Sequence[Sequence[float]]]) -> dict[K, list[float]]:
    """Seconds of each setting: the quickest round of each call, and the median over the calls of one key."""
    pools: dict[K, list[list[float]]] = {}
    for key, seen in zip(keys, times, strict=True):
        pools.setdefault(key, []).append([min(setting) for setting in seen])
    return {key: [median(setting) for setting in zip(*pool, strict=True)] for key, pool in pools.items()}


def _row(call: GatedCall, gate: Gate) -> int:
    return next(index for index, own in enumerate(call.gates) if own is gate)


def _threshold(call: GatedCall, gate: Gate, fraction: float) -> float:
    """A threshold that drops about `fraction` of the units for this call's input, by bisection on the counters."""
    if not fraction:
        return 0.0
    low, high = 0.0, 1e-6
    while _dropped(call, gate, high) < fraction and high < 1e12:
        low, high = high, high * 16
    for _ in range(8):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _dropped(call, gate, middle) < fraction else (low, middle)
    return high


def _dropped(call: GatedCall, gate: Gate, threshold: float) -> float:
    _set(gate, threshold)
    gate.counters.zero_()
    call.run()
    offered, executed = int(gate.counters[0]), int(gate.counters[1])
    _set(gate, OPEN[0])
    return 1.0 - executed / offered if offered else 0.0


def _set(gate: Gate, threshold: float) -> None:
    gate.record[0], gate.record[1] = threshold, 0.0


def random_input(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """An activation to time with: normal, as most are."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
