"""A sampled, bounded record of what gates decided at run time: for people who ask why."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srrc.runtime.gates import Gate, read

EVERY = 64
"""One call in so many is recorded: reading 120 gates takes half a millisecond, hence 8 microseconds a call."""

LENGTH = 4096
"""Entries kept; the oldest go first."""


@dataclass(frozen=True)
class Entry:
    """One gate in one call.

    call:      the graph's how-manieth
    signature: phase of the specialisation that ran
    gate:      its id
    relevance: SR = dI / dC at the margin, nats per FLOP: what its next unit is worth by the plan that set the
               threshold; None for a gate that no plan has spoken about
    threshold: the score that a unit had to exceed; negative for an open gate
    kept:      fraction of the offered units whose score did
    trusted:   False where the guard failed for a row, which then kept everything
    """

    call: int
    signature: str
    gate: str
    relevance: float | None
    threshold: float
    kept: float
    trusted: bool


class Ledger:
    """The entries of one graph, oldest first. Thread-safe; calls that overlap a sampled one count into it."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=LENGTH)
        self._lock = threading.Lock()

    def due(self, call: int) -> bool:
        """Whether this call is recorded."""
        return call % EVERY == 1

    def before(self, gates: Sequence[Gate]) -> list[list[float]]:
        """What the counters say before the call."""
        return read([gate.counters for gate in gates])

    def after(
        self,
        call: int,
        gates: Sequence[Gate],
        before: Sequence[Sequence[float]],
        relevance: Mapping[str, float],
    ) -> None:
        """Record the call. relevance: by gate id, as the plan has it."""
        entries = []
        counted, records = read([gate.counters for gate in gates]), read([gate.record for gate in gates])
        for gate, old, new, (threshold, _) in zip(gates, before, counted, records, strict=True):
            offered, executed, failed, *_ = (now - then for now, then in zip(new, old, strict=True))
            if offered > 0:
                kept, worth = executed / offered, relevance.get(gate.id)
                entries.append(Entry(call, gate.phase, gate.id, worth, threshold, kept, failed == 0))
        with self._lock:
            self._entries.extend(entries)

    def entries(self) -> tuple[Entry, ...]:
        """What is kept."""
        with self._lock:
            return tuple(self._entries)
