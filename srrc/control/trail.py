"""Steps of what plans follow, each taken back where drift grew after it: continual learning with a rollback.

Drift is judged beside what the plan was predicted to drift by, so that a plan that spends less is not taken for a
better belief. A step stands once as many measurements have come after it as it is judged by.
"""

from collections import deque
from dataclasses import dataclass, field

from srrc.control.beliefs import Beliefs, Factors

JUDGED = 32
"""Measurements before a step and after it that are compared."""

WORSE = 1.5
"""A step after which the mean ratio of measured to predicted drift is so many times what it was is taken back."""


@dataclass
class Trail:
    """The steps of one domain. before: ratios ahead of the step under judgement; kept: what it moved away from."""

    before: deque[float] = field(default_factory=lambda: deque(maxlen=JUDGED))
    kept: Factors | None = None
    after: list[float] = field(default_factory=list)

    @property
    def judging(self) -> bool:
        """Whether a step is under judgement; there is no other one meanwhile."""
        return self.kept is not None

    def step(self, beliefs: Beliefs) -> None:
        """Let plans follow what was learned."""
        self.kept, self.after = beliefs.followed, []
        beliefs.step()

    def measured(self, drift: float, predicted: float, beliefs: Beliefs) -> bool:
        """Take in a measurement of a plan that was predicted to drift by so much, nats.

        Returns whether a step was taken back just now.
        """
        if predicted <= 0:
            return False
        ratio = drift / predicted
        if self.kept is None:
            self.before.append(ratio)
            return False
        self.after.append(ratio)
        if len(self.after) < JUDGED:
            return False
        worse = len(self.before) == JUDGED and sum(self.after) > WORSE * sum(self.before)
        if worse:
            beliefs.followed = self.kept
        else:
            self.before.extend(self.after)
        self.kept, self.after = None, []
        return worse
