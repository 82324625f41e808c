"""The basis in which a vocabulary head's inputs are gated: a few directions carry most of any one context's
logits.

For hidden states x with mean m and second moment C about it, and the head's weight W, the squared error of
logits from dropping directions is smallest for the leading singular vectors of W C^(1/2): activation-weighted
SVD (as in ASVD, Yuan et al. 2023, and SliceGPT's PCA, Ashkboos et al. 2024). All directions are kept here, as
a full-rank change of basis; which of them matter is then decided for each context by its own gate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-3
"""Share of the mean variance added to every direction: few samples leave some directions without any."""


class Moments:
    """Running mean and second moment of rows [..., H], in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows of any dtype."""
        flat = rows.detach().reshape(-1, rows.shape[-1]).to("cpu", torch.float64)
        self.count += len(flat)
        self._sum += flat.sum(0)
        self._outer += flat.t() @ flat

    @property
    def mean(self) -> Tensor:
        """float64 [H]."""
        return self._sum / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """float64 [H, H]."""
        return self._outer / max(self.count, 1) - torch.outer(self.mean, self.mean)


@dataclass(frozen=True, eq=False)
class Basis:
    """W x = (W inverse) (rotation (x - mean)) + W mean. All float32: rotation and inverse [H, H], mean [H].

    Directions come in the order of how much of the logits' variance they carry, largest first.
    """

    rotation: Tensor
    inverse: Tensor
    mean: Tensor


def head_basis(moments: Moments, weight: Tensor) -> Basis:
    """The basis for a head's weight [V, H], any dtype and strides, given its inputs' moments."""
    covariance = moments.covariance
    floor = _FLOOR * covariance.diagonal().mean().clamp(min=1e-30)
    variances, axes = torch.linalg.eigh(covariance + floor * torch.eye(len(covariance), dtype=torch.float64))
    root = (axes * variances.sqrt()) @ axes.t()
    inverse_root = (axes / variances.sqrt()) @ axes.t()
    gram = _gram(weight)
    _, directions = torch.linalg.eigh(root @ gram @ root)
    directions = directions.flip(-1)
    return Basis((directions.t() @ inverse_root).float(), (root @ directions).float(), moments.mean.float())


def _gram(weight: Tensor) -> Tensor:
    """W^T W in float64, [H, H], a few thousand rows at a time."""
    total = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for rows in weight.detach().split(8192):  # type: ignore[no-untyped-call]
        wide = rows.to("cpu", torch.float32)
        total += (wide.t() @ wide).double()
    return total
