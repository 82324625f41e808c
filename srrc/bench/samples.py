"""What one variant gave in the course of a run, as it came in."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Samples:
    """prefills, tokens: by prompt. slices: seconds a step, by (prompt, slice).

    loaded, compiled, finished: what the worker said at those points; `warm` is `compiled` of a second process
    prefill_work, decode_work: what srrc counted, summed
    reads: by domain, what `srrc.bench.reading.Read` holds; written: by scenario, what `Session.write` gave
    """

    loaded: dict[str, Any] = field(default_factory=dict)
    compiled: dict[str, Any] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    prefills: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    slices: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    prefill_work: Counter[str] = field(default_factory=Counter)
    decode_work: Counter[str] = field(default_factory=Counter)
    reads: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def decode_steps(self) -> int:
        """How many steps were timed."""
        return sum(map(len, self.slices.values()))
