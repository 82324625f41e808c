"""What a text is about, as a few numbers: token embeddings pooled, centred, and projected to where texts differ.

The mean of a text's embeddings is mostly what all texts share. Centred on the mean over calibration texts and projected
to the leading principal directions of their differences, each over the root of its singular value so that no one
direction decides alone, it tells kinds of text apart (`srrc/control/domains.py` has the figures). A bag of words is
enough for that, and needs nothing of the compiled graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = 8
"""More tell no more: with 16, domains are purer and twice as many."""

MEAN, PROJECTION = "context/mean", "context/projection"
"""Names of a basis among a profile's vectors."""

PIECE = 64
"""Tokens that are pooled together where the projection is fitted."""


@dataclass(frozen=True, eq=False)
class ContextBasis:
    """mean float32 [K], of the pooled embeddings; projection float32 [D, K]."""

    mean: Tensor
    projection: Tensor

    def context(self, pooled: Tensor) -> Tensor:
        """A pooled embedding [K] as a context: float32 [D] of unit length; zeros where it is the mean itself."""
        return F.normalize(self.projection @ (pooled.float() - self.mean), dim=0)

    def vectors(self) -> dict[str, Tensor]:
        """As a profile keeps it."""
        return {MEAN: self.mean, PROJECTION: self.projection}


def kept_basis(vectors: Mapping[str, Tensor]) -> ContextBasis | None:
    """The basis among a profile's vectors; None where it was made without one."""
    if MEAN not in vectors or PROJECTION not in vectors:
        return None
    return ContextBasis(vectors[MEAN], vectors[PROJECTION])


def context_basis(pooled: Tensor) -> ContextBasis:
    """The basis of pooled embeddings [N, K], N at least 2. D is `DIRECTIONS`, or fewer where N or K allow no more."""
    rows = pooled.float()
    mean = rows.mean(0)
    _, values, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    count = min(DIRECTIONS, len(rows) - 1, rows.shape[1])
    scale = values[:count].clamp(min=1e-6 * values[0].clamp(min=1e-30)).rsqrt()
    return ContextBasis(mean, directions[:count] * scale[:, None])


def pooled(embedding: Tensor, ids: Tensor) -> Tensor:
    """Mean embedding [V, K] of all tokens of `ids` [..., L]: float32 [K]. Ids out of range are left out."""
    flat = ids.reshape(-1)
    flat = flat[(flat >= 0) & (flat < len(embedding))]
    return embedding[flat].float().mean(0)
