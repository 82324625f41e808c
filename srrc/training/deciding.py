"""What gates drop while they are trained: a fraction of a batch, with a gradient, with noise, or by a policy's draw.

A unit is kept where score * exp(emphasis) exceeds a threshold. Score: |value| * norm, the norm learned. Emphasis: one
number a row, learned, that lets a token keep more or fewer units than others. The threshold is the batch's own
quantile, so that a gate drops the fraction that was asked whatever is learned: training moves WHAT is dropped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from srrc.training.router import Router


class Shift(Protocol):
    """What a gate's log scores are moved by."""

    def shift(self, gate: str, features: Tensor) -> Tensor:
        """[..., units] or [..., 1] for features [..., K]."""
        ...


TEMPERATURE = 0.3
"""Width of the soft step, in units of log score."""

NOISE = 0.05
"""Scale of Gumbel's noise, in the same units: larger, and adapters learn to live with noise that is not there later."""

_SAMPLE = 100_000
"""So many scores tell a batch's quantile while training."""

_TINY = 1e-12


@dataclass
class AtFractions:
    """Drops fixed fractions. Gradients reach norms and emphasis by the straight-through estimator (Bengio et al. 2013).

    fractions: gate id -> fraction of its units to drop
    router:    what is learned, or was; None for the gates as they are
    skip:      leading positions of each sequence that keep everything: a text's first token is never decoded
    gumbel:    whether logistic noise is added to each unit's log score (Gumbel-softmax of two: Jang et al. 2017)
    draw:      of the sample for the quantile, and of the noise
    """

    fractions: Mapping[str, float]
    router: Shift | None
    skip: int = 1
    gumbel: bool = False
    draw: torch.Generator | None = None

    def __call__(self, gate: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        """As `routed.Decide`."""
        fraction = self.fractions.get(gate, 0.0)
        if fraction <= 0:
            return value
        score = self._log_score(gate, value, norm, features)
        if self.gumbel:
            uniform = torch.rand(score.shape, generator=self.draw).clamp(1e-6, 1 - 1e-6)
            score = score + NOISE * (uniform.log() - (-uniform).log1p())
        threshold = self._quantile(score.detach(), fraction)
        keep = score.detach() > threshold
        if self.skip:
            keep[..., : self.skip, :] = True
        if not score.requires_grad:
            return torch.where(keep, value, torch.zeros((), dtype=value.dtype))
        soft = (score - threshold) / TEMPERATURE
        with (
            torch.no_grad()
        ):  # where the step is steep: the threshold moves with the scores there, and only there
            steep = torch.sigmoid(soft)
            steep = steep * (1 - steep)
            steep /= steep.sum().clamp(min=_TINY)
        mean = (steep * soft).sum()
        soft = torch.sigmoid(soft - (mean - mean.detach()))
        return value * (keep + (soft - soft.detach())).to(value.dtype)

    def _log_score(self, gate: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        score = (value.detach().abs().float() * norm).clamp(min=_TINY).log()
        return score if self.router is None else score + self.router.shift(gate, features.detach())

    def _quantile(self, score: Tensor, fraction: float) -> Tensor:
        held = score[..., self.skip :, :].reshape(-1)
        if self.draw is not None and len(held) > _SAMPLE:
            held = held[torch.randint(len(held), (_SAMPLE,), generator=self.draw)]
        return held.kthvalue(max(1, min(len(held), math.ceil(fraction * len(held))))).values


@dataclass
class Drawn(AtFractions):
    """A policy: emphasis is drawn from a normal distribution about the router's, and what was drawn is remembered.

    Thresholds are those of the undisturbed emphasis, so that a draw that keeps more costs more.
    spread: standard deviation of the draw
    kept:   [rows..., 1] per gate, the fraction that each row kept
    means, noises: per gate, the router's emphasis (with its gradient) and the draw's distance from it, over `spread`
    """

    spread: float = 0.3
    kept: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    noises: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, gate: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        """As `routed.Decide`."""
        fraction = self.fractions.get(gate, 0.0)
        if fraction <= 0:
            return value
        assert isinstance(self.router, Router)
        mean = self.router.emphasis(gate, features.detach())
        noise = torch.randn(mean.shape, generator=self.draw)
        with torch.no_grad():
            plain = self._log_score(gate, value, norm, features)
            threshold = self._quantile(plain, fraction)
            keep = plain + self.spread * noise > threshold
            if self.skip:
                keep[..., : self.skip, :] = True
        self.kept[gate] = keep.float().mean(-1, keepdim=True)
        self.means[gate], self.noises[gate] = mean, noise
        return torch.where(keep, value, torch.zeros((), dtype=value.dtype))

    def surrogate(self, advantage: Tensor) -> Tensor:
        """A scalar whose gradient is REINFORCE's (Williams 1992), for rewards to be made larger.

        advantage: float32 [rows...], how much better each row fared than was to be expected
        """
        total = torch.zeros(())
        for gate, mean in self.means.items():
            total = total - (advantage[..., None] * self.noises[gate] / self.spread * mean).sum()
        return total / max(1, advantage.numel() * len(self.means))
