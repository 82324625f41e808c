"""What is found of a kernel: whether it is right, and how fast it is beside others."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor


class Skipped(Exception):  # noqa: N818
    """A case that cannot run here; its text says why."""


@dataclass(frozen=True)
class Ceilings:
    """What the card can do, measured in the same run: bytes a second of a copy, FLOPs a second of a bf16 product."""

    bandwidth: float
    compute: float


@dataclass(frozen=True)
class Check:
    """error: |found - reference| / |reference|, of which `allowed` is right."""

    kernel: str
    case: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Measurement:
    """A kernel's time at a shape.

    ms:        milliseconds a call
    others:    milliseconds of what does the same, by name
    bytes:     what it has to read and write at least
    flops:     what it has to compute at least
    config:    how it was launched
    """

    kernel: str
    case: str
    ms: float
    others: Mapping[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    flops: float = 0.0
    config: str = ""

    def of_ceiling(self, ceilings: Ceilings) -> float:
        """The share of the card's ceiling that it reaches: of bandwidth or of compute, whichever is nearer."""
        bound = max(self.bytes / ceilings.bandwidth, self.flops / ceilings.compute)
        return 1e3 * bound / self.ms

    def as_dict(self, ceilings: Ceilings) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "of_ceiling": self.of_ceiling(ceilings)}


ALLOWED = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Relative errors that rounding explains, by dtype of the output."""


def check(kernel: str, case: str, found: Tensor, truth: Tensor) -> Check:
    """Compare in float64."""
    wide, right = found.double(), truth.double()
    norm = float(right.norm())
    error = float((wide - right).norm()) / (norm or 1.0)
    dtype = str(found.dtype).removeprefix("torch.")
    return Check(kernel, case, error if math.isfinite(error) else math.nan, ALLOWED[dtype])
