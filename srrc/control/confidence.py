"""Confidence bounds on a mean drift that hold at every moment of looking, however many values there are by then.

The predictable plug-in empirical-Bernstein sequence of Waudby-Smith and Ramdas ("Estimating means of bounded random
variables by betting", JRSS B 2024, theorem 2): valid for values in a known range whose conditional mean stays the
same, with no assumption on their distribution. Drifts are heavy-tailed, so a normal approximation would be too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LARGEST_BET = 0.5


@dataclass(frozen=True)
class Interval:
    """A mean and its bounds, in the unit of the values."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], ceiling: float, miss: float = 0.05) -> Interval:
    """Bounds on the mean of min(value, ceiling); they fail to hold, ever, with a probability of `miss` at most.

    values:  in the order in which they were seen, none negative
    ceiling: largest value that counts as itself, positive; it is the upper bound where nothing was seen
    """
    doubt = math.log(2 / miss)
    weight = weighted = spread = 0.0
    # One imagined value in the middle, with the variance of the widest distribution.
    total, squares = 0.5, 0.25
    for count, value in enumerate(values, 1):
        scaled = min(max(value / ceiling, 0.0), 1.0)
        mean, variance = total / count, squares / count
        bet = min(_LARGEST_BET, math.sqrt(2 * doubt / (variance * count * math.log1p(count))))
        weight += bet
        weighted += bet * scaled
        spread += (scaled - mean) ** 2 * (-math.log1p(-bet) - bet)
        total += scaled
        squares += (scaled - total / (count + 1)) ** 2
    if not weight:
        return Interval(0.0, 0.0, ceiling)
    middle, width = weighted / weight, (doubt + spread) / weight
    return Interval(
        sum(min(value, ceiling) for value in values) / len(values),
        max(0.0, middle - width) * ceiling,
        min(1.0, middle + width) * ceiling,
    )
