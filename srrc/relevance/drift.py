"""How far a routed output is from the dense one, in nats a position.

For logits: KL(dense || routed) over the last dimension. For anything else (a hidden state, an embedding) the
dense output is taken as the mean of a Gaussian with the variance that the outputs themselves have, for which
the same divergence is half the squared difference over that variance, averaged over the last dimension.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Measure = Literal["logits", "values"]

_CHUNK = 64
"""Rows handled at once, so that a large vocabulary needs little memory beside the outputs themselves."""


@dataclass(frozen=True)
class Drift:
    """Running mean of a drift and its spread: sum and sum of squares over positions, and their count."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(self.total + other.total, self.squares + other.squares, self.count + other.count)

    @property
    def mean(self) -> float:
        """Nats a position."""
        return self.total / self.count if self.count else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        if self.count < 2:
            return 0.0
        variance = max(self.squares - self.total**2 / self.count, 0.0) / (self.count - 1)
        return float((variance / self.count) ** 0.5)


class Reference:
    """A dense output [..., N], to measure routed ones against. Holds it twice in float32."""

    def __init__(self, dense: Tensor, how: Measure) -> None:
        self._how = how
        self._dense = dense.detach().reshape(-1, dense.shape[-1]).float()
        self._masked = how == "logits" and bool(self._dense.isinf().any())
        # Softmax adds up to 1 only within rounding, which would show in small drifts: its sums are divided
        # out.
        self._weight = self._dense.softmax(-1) if how == "logits" else self._dense.var().clamp(min=1e-30)

    def drift(self, routed: Tensor) -> Drift:
        """Drift over all positions. An output that is not finite where the dense one is drifts infinitely."""
        routed = routed.detach().reshape(self._dense.shape)
        total = squares = 0.0
        for start in range(0, len(routed), _CHUNK):
            rows = slice(start, start + _CHUNK)
            nats = (
                self._kl(rows, routed[rows]) if self._how == "logits" else self._gaussian(rows, routed[rows])
            )
            nats = nats.nan_to_num(nan=float("inf")).clamp(min=0).double()
            total += float(nats.sum())
            squares += float((nats**2).sum())
        return Drift(total, squares, len(routed))

    def _kl(self, rows: slice, routed: Tensor) -> Tensor:
        # With d the difference less its mean under p, KL = log sum p exp(d). A sum of p * expm1(d) loses no
        # digits where d is small, which a difference of two logarithms would.
        p, difference = self._weight[rows], routed.float() - self._dense[rows]
        if self._masked:  # a token masked in both
            difference = difference.masked_fill(self._dense[rows] == routed, 0.0)
        whole = p.sum(-1, keepdim=True)
        difference -= (p * difference).sum(-1, keepdim=True) / whole
        nats = torch.log1p((p * difference.expm1()).sum(-1) / whole[..., 0])
        if not nats.isfinite().all():  # exp overflowed
            one, other = self._dense[rows].log_softmax(-1), routed.float().log_softmax(-1)
            exact = (p * (one - other).masked_fill(p == 0, 0.0)).sum(-1)
            nats = torch.where(nats.isfinite(), nats, exact)
        return nats

    def _gaussian(self, rows: slice, routed: Tensor) -> Tensor:
        return (self._dense[rows] - routed.float()).pow(2).mean(-1) / (2 * self._weight)


def measure(dense: Tensor, routed: Tensor, how: Measure) -> Drift:
    """Drift of one routed output; `Reference` is cheaper for several."""
    return Reference(dense, how).drift(routed)
