"""Keeps drift under a bound on any text: moves the drift that a plan is allowed by what was measured.

The level is the predicted drift that the next plan may have. After each measured call it moves by
rate * (bound - measured), the update of adaptive conformal inference (Gibbs and Candes 2021) and of online risk control
(Feldman et al. 2023). Its guarantee needs no assumption on texts, model or profile:

    over ANY n consecutive measured calls, mean drift <= bound + (reach / rate + ceiling) / n

Proof: a step with measured drift d (counted as `ceiling` where it is larger) leaves the level at most
level - rate * (d - bound), so the sum of d - bound over the calls is at most (first level - last level) / rate. The
first is at most `reach`. The last is at least -rate * ceiling, since at levels of 0 and below every gate is open, d is
0, and the level rises. Dividing by n gives the bound.

It is conservative at first: the level starts at a quarter of the bound, and rises only as measurements allow.
"""

import math
from dataclasses import dataclass, field

START = 0.25
"""Where the level starts, as a share of the bound."""

RATE = 0.1
"""How far a measurement moves the level. Noise in the level is about rate / 2 of the noise in measurements."""

CEILING = 25.0
"""A drift of more than so many bounds counts as that many: one odd token must not close everything for long."""

ALARM = 4.0
"""A drift of more than so many bounds starts an alarm."""

ALARM_CALLS = 16
"""How many of the calls after an alarm are all measured."""


@dataclass
class Regulator:
    """The level of one graph's plan, in nats a token.

    bound: the mean drift to stay under, positive
    reach: the level at which the plan is what the budget asks for, and is never passed
    level: where it starts, by default `START` bounds; `watching`: how many calls an alarm still lasts
    """

    bound: float
    reach: float
    rate: float = RATE
    level: float = field(default=math.nan)
    watching: int = 0

    def __post_init__(self) -> None:
        if math.isnan(self.level):
            self.level = min(START * self.bound, self.reach)

    def extend(self, reach: float) -> None:
        """Give it another reach: another budget is asked for."""
        self.reach, self.level = reach, min(self.level, reach)

    @property
    def ceiling(self) -> float:
        """The drift that any larger one counts as."""
        return CEILING * self.bound

    def measured(self, drift: float) -> None:
        """Take in one measurement, nats a token; NaN and infinity count as the ceiling."""
        counted = self.ceiling if math.isnan(drift) else min(drift, self.ceiling)
        self.level = min(self.reach, self.level + self.rate * (self.bound - max(counted, 0.0)))
        self.watching = ALARM_CALLS if counted > ALARM * self.bound else max(0, self.watching - 1)

    @property
    def alarmed(self) -> bool:
        """Whether the next call should be measured whatever the fraction of calls that usually is."""
        return self.watching > 0

    def promise(self, measured_calls: int) -> float:
        """What the mean drift over any so many consecutive measured calls cannot exceed (see above)."""
        return self.bound + (self.reach / self.rate + self.ceiling) / measured_calls
