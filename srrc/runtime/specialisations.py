"""Specialised graphs by context signature: a small LRU of compiled drivers for one graph that Dynamo captured.

Dynamo's own guards choose the graph; within one that is dynamic, decoding and prefill want different kernels and
different plans. A signature tells them apart.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CAPACITY = 8
"""Specialisations kept of one graph; the least recently used goes first."""


@dataclass(frozen=True)
class Signature:
    """What a specialisation is for.

    phase:  "decode" (few rows) or "prefill"
    bucket: upper bound of the rows, the next power of two from `FEW_ROWS` on for few-row kernels; 0 for "any"
    domain: the cluster of contexts it was planned for, "" where there is none
    """

    phase: str
    bucket: int = 0
    domain: str = ""


class Specialisations:
    """The compiled drivers of one graph. Thread-safe; each signature is compiled once."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.hits = self.misses = self.evictions = 0
        self._drivers: OrderedDict[Signature, Callable[..., Any]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, signature: Signature, build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The driver for `signature`, built on its first use."""
        with self._lock:
            driver = self._drivers.get(signature)
            if driver is not None:
                self.hits += 1
                self._drivers.move_to_end(signature)
                return driver
            self.misses += 1
            driver = self._drivers[signature] = build()
            while len(self._drivers) > self.capacity:
                self._drivers.popitem(last=False)
                self.evictions += 1
            return driver

    def reset_counts(self) -> None:
        """Start counting anew; what is compiled stays."""
        with self._lock:
            self.hits = self.misses = self.evictions = 0
