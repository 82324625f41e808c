"""What is found of a kernel: whether it is right, and how fast it is beside others."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
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
    """error: how far the kernel is from its reference (`check`, `exact`), of which `allowed` is right."""

    kernel: str
    case: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.error <= self.allowed

    def as_dict(self) -> dict[str, object]:
        """For JSON, which has no NaN."""
        error = self.error if math.isfinite(self.error) else None
        return {**asdict(self), "error": error, "passed": self.passed}


@dataclass(frozen=True)
class Measurement:
    """A kernel's time at a shape.

    ms:        milliseconds a call
    others:    milliseconds of what does the same, by name
    bytes:     what it has to read and write at least
    flops:     what it has to compute at least
    config:    how it was launched
    missing:   what should be among the others, by name, and why it is not
    """

    kernel: str
    case: str
    ms: float
    others: Mapping[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    flops: float = 0.0
    config: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)

    def of_ceiling(self, ceilings: Ceilings) -> float:
        """The share of the card's ceiling that it reaches: of bandwidth or of compute, whichever is nearer."""
        bound = max(self.bytes / ceilings.bandwidth, self.flops / ceilings.compute)
        return 1e3 * bound / self.ms

    def as_dict(self, ceilings: Ceilings | None) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "of_ceiling": None if ceilings is None else self.of_ceiling(ceilings)}


Found = Check | Measurement | Ceilings

KINDS: Mapping[str, Any] = {"check": Check, "measurement": Measurement, "ceilings": Ceilings}

ALLOWED = {"float32": 3e-5, "float16": 2.5e-3, "bfloat16": 2e-2}
"""Errors of an element (`off_by`) that rounding explains, by dtype of the output: some four times what it makes."""


def check(kernel: str, case: str, found: Tensor, truth: Tensor, *, slack: float = 1.0) -> Check:
    """The worst element of all, by `off_by`: norms of a whole would hide an element that is wrong, or a row.

    slack: of the allowed, for what rounds several times on the way
    """
    allowed = slack * ALLOWED[str(found.dtype).removeprefix("torch.")]
    if found.shape != truth.shape or not found.numel():
        return Check(kernel, case, math.nan, allowed)
    error = float(off_by(found, truth).max())
    return Check(kernel, case, error if math.isfinite(error) else math.nan, allowed)


def off_by(found: Tensor, truth: Tensor) -> Tensor:
    """Of each element, in float64: |found - truth| / (|truth| + RMS of its row of the truth).

    A row is what the last dimension runs along; one of zeros counts for as large as all rows are together. Infinities
    that are equal are no error.
    """
    wide, right = found.double(), truth.double()
    finite = torch.where(right.isfinite(), right, 0.0)
    rows = finite.square().mean(-1, keepdim=True).sqrt()
    size = torch.where(rows > 0, rows, finite.square().mean().sqrt()).clamp_min(1e-30)
    return torch.where(wide == right, 0.0, (wide - right).abs() / (right.abs() + size))


def exact(kernel: str, case: str, *pairs: tuple[Tensor, Tensor]) -> Check:
    """How many elements differ from the truth's: for integers, and for values that are moved as they are."""
    if any(found.shape != truth.shape for found, truth in pairs):
        return Check(kernel, case, math.nan, 0.0)
    wrong = sum(int((_bits(found) != _bits(truth)).sum()) for found, truth in pairs)
    return Check(kernel, case, float(wrong), 0.0)


def norm_check(kernel: str, case: str, found: Tensor, truth: Tensor, allowed: float) -> Check:
    """|found - truth| / |truth| of the whole: where rounding may move a few decisions, and with them single values."""
    error = float((found.double() - truth.double()).norm() / truth.double().norm())
    return Check(kernel, case, error if math.isfinite(error) else math.nan, allowed)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    """Integers as they are, and a float's bits, so that NaN equals NaN."""
    if not tensor.is_floating_point():
        return tensor.long()
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])
