"""Medians with quartiles, and 95% intervals of means over tokens that are not independent."""

import math
import statistics
from collections.abc import Sequence

BLOCK = 16
"""Neighbouring tokens whose mean counts as one observation: what is hard about a text is hard for a while."""


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float] | None:
    """{"median", "q1", "q3"} of the values times `scale`; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    low, middle, high = (
        statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    )
    return {"median": middle * scale, "q1": low * scale, "q3": high * scale}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float] | None:
    """Spread of slower / faster, pair by pair: over 1 where the second took less time."""
    return spread([one / other for one, other in zip(slower, faster, strict=True)])


def mean_interval(values: Sequence[float], block: int = BLOCK) -> tuple[float, float, float]:
    """(mean, low, high): the normal 95% interval, with the standard error of the means of blocks.

    With fewer than two blocks there is no interval: low and high are infinite.
    """
    mean = math.fsum(values) / len(values)
    means = [math.fsum(values[at : at + block]) / block for at in range(0, len(values) - block + 1, block)]
    if len(means) < 2:
        return mean, -math.inf, math.inf
    error = 1.96 * statistics.stdev(means) / math.sqrt(len(means))
    return mean, mean - error, mean + error
