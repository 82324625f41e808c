"""A plan: the controller's answer to a budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from srrc.profile import GateCost

Record = tuple[float, float]
"""(threshold, min_kept), as a gate reads it: a unit is kept unless its score is at most the threshold."""


@dataclass(frozen=True)
class PhaseCost:
    """What one row costs in a phase (decode or prefill), and what each of its gates can take off that.

    flops, bytes: of all that is computed when nothing is skipped, for one row
    gates:        by gate id; gates that this phase does not have are missing
    saves:        whether dropped units are saved time here. Where many rows share each weight they are not:
                  the plan is dense then
    """

    flops: float
    bytes: float
    gates: Mapping[str, GateCost]
    saves: bool = True


@dataclass(frozen=True)
class Plan:
    """Thresholds for every gate, and what they are predicted to give.

    budget, max_drift: what was asked for
    thresholds: phase -> gate id -> record; gates that are not named are open
    fractions:  gate id -> fraction of its units dropped (decoding)
    spent:      share of the dense cost of decoding that is left: the mean of `flops` and `bytes`. Above
                `budget` where `max_drift` or the gates' reach stopped it
    flops, bytes: shares of the dense FLOPs and bytes, of decoding, deciding included
    drift:      predicted mean KL(dense, routed), nats a token, corrected by what was measured jointly
    added:      the same without correction: the sum of the gates' own drifts
    price:      the marginal drift at which the budget was cut, nats per share of the dense cost
    reverted:   gates left open because dropping so little measured slower than dense on this machine
    relevance:  pathway or gate id -> marginal SR = dI / dC at the plan's point, nats per FLOP
    """

    budget: float | None = None
    max_drift: float | None = None
    thresholds: Mapping[str, Mapping[str, Record]] = field(default_factory=dict)
    fractions: Mapping[str, float] = field(default_factory=dict)
    spent: float = 1.0
    flops: float = 1.0
    bytes: float = 1.0
    drift: float = 0.0
    added: float = 0.0
    price: float = 0.0
    relevance: Mapping[str, float] = field(default_factory=dict)
    reverted: frozenset[str] = frozenset()

    @property
    def met(self) -> bool:
        """Whether the budget was reached."""
        return self.budget is None or self.spent <= self.budget + 1e-9
