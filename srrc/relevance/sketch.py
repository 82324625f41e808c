"""The distribution of a gate's scores, streamed in bounded memory: a histogram over the bits of float32.

A non-negative float32 read as an integer keeps its order, so its upper 16 bits (the exponent and seven bits
of the significand) number 32,768 buckets, each 1/128 of its values wide, over the whole range of float32.
Adding is exact and in any order; two sketches add up. A quantile is off by at most one bucket: less than 0.8%
of its value.
"""

import torch
from torch import Tensor

BUCKETS = 1 << 15
_SHIFT = 16


class Sketch:
    """Counts of non-negative scores. `counts`: int64 [BUCKETS], 256 KB."""

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(BUCKETS, dtype=torch.int64) if counts is None else counts

    def add(self, scores: Tensor) -> None:
        """Add scores of any shape. NaN, which every gate keeps, and infinity count as the largest number."""
        most = torch.finfo(torch.float32).max
        values = torch.nan_to_num(scores.detach().to("cpu", torch.float32), nan=most, posinf=most).abs()
        # Zero and a negative zero are one; abs() made them so.
        index = values.reshape(-1).view(torch.int32) >> _SHIFT
        self.counts += torch.bincount(index, minlength=BUCKETS)[:BUCKETS]

    def quantiles(self, count: int = 1025) -> Tensor:
        """float32 [count]: scores at fractions 0, 1/(count-1), ..., 1; linear within a bucket.

        Raises ValueError where nothing was added.
        """
        cumulative = self.counts.cumsum(0).to(torch.float64)
        total = cumulative[-1]
        if total == 0:
            raise ValueError("no scores were added")
        wanted = torch.linspace(0, 1, count, dtype=torch.float64) * total
        # The bucket in which the wanted-th score lies; the first non-empty one for 0.
        wanted = wanted.clamp(min=0.5)
        bucket = torch.searchsorted(cumulative, wanted).clamp(max=BUCKETS - 1)
        inside = (wanted - (cumulative[bucket] - self.counts[bucket])) / self.counts[bucket]
        low, high = _edge(bucket), _edge(bucket + 1)
        # Exact zeros have a bucket with the smallest numbers; in practice it holds nothing else.
        value = torch.where(bucket == 0, torch.zeros_like(low), low + (high - low) * inside)
        return value.clamp(max=torch.finfo(torch.float32).max).to(torch.float32)

    def log_mean(self) -> float:
        """Mean of the natural logarithm of the scores above zero; 0 where there are none."""
        middle = (_edge(torch.arange(1, BUCKETS - 128)) * (1 + 1 / 256)).log()
        counts = self.counts[1 : BUCKETS - 128]
        total = int(counts.sum())
        return float((middle * counts).sum() / total) if total else 0.0


def _edge(bucket: Tensor) -> Tensor:
    """Lower edge of a bucket, float64."""
    return (bucket.clamp(max=BUCKETS - 1).to(torch.int32) << _SHIFT).view(torch.float32).to(torch.float64)
