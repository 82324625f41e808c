"""Feedback: on a small fraction of the calls the dense answer is computed too, and the drift between both measured."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from srrc.control.confidence import Interval, interval
from srrc.control.plan import Record
from srrc.runtime.gates import OPEN, Gate, keep, restore, write
from srrc.runtime.strides import empty_as

WINDOW = 256
"""Measurements that the confidence bounds are of: the latest."""


@dataclass
class Drift:
    """KL(dense, routed) as measured, in nats a row: the last, the mean of all, and the latest ones.

    For outputs that are no logits: mean squared difference over the dense output's mean square.
    """

    last: float | None = None
    total: float = 0.0
    samples: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, value: float) -> None:
        """Take in one measurement."""
        with self.lock:
            self.last = value
            self.total += value
            self.samples += 1
            self.recent.append(value)

    @property
    def mean(self) -> float | None:
        """Mean of the measurements so far, None before the first."""
        return self.total / self.samples if self.samples else None

    def bounds(self, ceiling: float) -> Interval:
        """95% bounds on the mean of the latest measurements; larger ones than `ceiling` count as it."""
        with self.lock:
            return interval(tuple(self.recent), ceiling)


def answer(
    run: Callable[..., Any],
    args: Sequence[Any],
    gates: Sequence[Gate],
    parameters: set[int],
    index: int,
    records: Mapping[str, Record] = MappingProxyType({}),
    *,
    in_place: bool = False,
) -> torch.Tensor:
    """Output `index` of `run` with these gates at these records and every other open: by default the dense answer.

    in_place: `run` is a CUDA graph, which knows its inputs by their address and answers in memory that it uses again

    Inputs that it may write to (all but parameters, and what lies several times in the same memory) are copied first.
    It runs on the copies; in place, they are written back, and the answer is copied. Meanwhile other threads run like
    this too: never wrong, and rare.
    """
    written = [isinstance(a, torch.Tensor) and id(a) not in parameters and not _repeats(a) for a in args]
    copies = [empty_as(a).copy_(a.detach()) if mine else a for a, mine in zip(args, written, strict=True)]
    set_to, counted = [gate.record for gate in gates], [gate.counters for gate in gates]
    held, counters = keep(set_to), keep(counted)
    write(set_to, [records.get(gate.id, OPEN) for gate in gates])
    try:
        found: torch.Tensor = run(*(args if in_place else copies))[index]
        return found.clone() if in_place else found
    finally:
        for given, copy, mine in zip(args, copies, written, strict=True):
            if in_place and mine:
                given.copy_(copy)
        restore(set_to, held)
        restore(counted, counters)


def _repeats(tensor: torch.Tensor) -> bool:
    """Whether one place in memory is several elements, as of an expanded mask: nothing can write to such."""
    return any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def drift_between(dense: torch.Tensor, routed: torch.Tensor, *, logits: bool) -> float:
    """Mean drift over the rows of two outputs [..., N]."""
    if logits:
        p, q = (value.float().log_softmax(-1) for value in (dense, routed))
        return float((p.exp() * (p - q)).sum(-1).mean())
    power = dense.float().square().mean()
    return float((dense.float() - routed.float()).square().mean() / power) if power > 0 else 0.0
