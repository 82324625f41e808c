"""Feedback: on a small fraction of the calls the dense answer is computed too, and the drift between both measured."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from srrc.runtime.gates import Gate


@dataclass
class Drift:
    """Running mean of KL(dense, routed) in nats a row.

    For outputs that are no logits: mean squared difference over the dense output's mean square.
    """

    last: float | None = None
    total: float = 0.0
    samples: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, value: float) -> None:
        """Take in one measurement."""
        with self.lock:
            self.last = value
            self.total += value
            self.samples += 1

    @property
    def mean(self) -> float | None:
        """Mean of the measurements so far, None before the first."""
        return self.total / self.samples if self.samples else None


def due(call: int, fraction: float) -> bool:
    """Whether feedback is due on this call, so that `fraction` of all calls, evenly spaced, have it."""
    return int(call * fraction) != int((call - 1) * fraction)


def dense_answer(
    run: Callable[..., Any], args: Sequence[Any], gates: Sequence[Gate], parameters: set[int]
) -> Any:
    """What `run` gives with every gate open. Inputs that it may write to (all but parameters) are copied first.

    Meanwhile other threads run dense too: never wrong, and rare.
    """
    copies = [a.clone() if isinstance(a, torch.Tensor) and id(a) not in parameters else a for a in args]
    records = [gate.record.clone() for gate in gates]
    counters = [gate.counters.clone() for gate in gates]
    for gate in gates:
        gate.record[0] = -1.0
    try:
        return run(*copies)
    finally:
        for gate, record, counter in zip(gates, records, counters, strict=True):
            gate.record.copy_(record)
            gate.counters.copy_(counter)


def drift_between(dense: torch.Tensor, routed: torch.Tensor, *, logits: bool) -> float:
    """Mean drift over the rows of two outputs [..., N]."""
    if logits:
        p, q = (value.float().log_softmax(-1) for value in (dense, routed))
        return float((p.exp() * (p - q)).sum(-1).mean())
    power = dense.float().square().mean()
    return float((dense.float() - routed.float()).square().mean() / power) if power > 0 else 0.0
