"""The probe of a layer gate: predicts from the stream how much a residual branch will add to it, relative to it.

Ridge regression of log(||exit|| / ||stream||) on x / rms(x), in closed form from running moments: memory does not
grow with the number of tokens, and nothing is trained by steps. The paper's relevance estimator, at its cheapest: a
vector a branch, read once a token.
"""

import torch
from torch import Tensor

from srrc.relevance.basis import Moments

RIDGE = 0.03
"""Share of the features' mean variance added to every direction: there are not many more tokens than features."""

SMALLEST = 1e-6
"""Relative sizes below it count as it: an exact zero has no logarithm."""


class ProbeFit:
    """Running moments of (x / rms(x), log ratio) over tokens: [H + 1, H + 1] in float64 for a stream of width H.

    `see` takes the three values of one call, in whichever order the graph computes them.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._moments = Moments(width + 1)
        self._seen: dict[str, Tensor] = {}

    def see(self, part: str, value: Tensor) -> None:
        """`part` is "entry" (value [..., H]), "exit" or "stream" (both [..., N]); the last of the three is fitted."""
        rows = value.detach().reshape(-1, value.shape[-1]).float()
        if part == "entry":
            self._seen[part] = direction(rows)
        else:
            self._seen[part] = torch.linalg.vector_norm(rows, dim=-1)
        if len(self._seen) < 3:
            return
        ratio = (self._seen["exit"] / self._seen["stream"]).clamp(min=SMALLEST).log()
        both = torch.cat((self._seen["entry"], ratio[:, None]), -1)
        self._seen = {}
        self._moments.add(both[both.isfinite().all(-1)])

    def probe(self) -> Tensor:
        """float32 [H + 1]: weights, then the bias. Zeros and the mean where nothing varied."""
        return ridge(self._moments, self._width)[0]


def direction(rows: Tensor) -> Tensor:
    """X / rms(x) of float32 rows [..., H]."""
    return rows / rows.square().mean(-1, keepdim=True).sqrt()


def ridge(moments: Moments, width: int) -> Tensor:
    """Probes from moments of (features [width], targets [T]): float32 [T, width + 1], weights and then the bias."""
    mean, both = moments.mean, moments.covariance
    features, cross = both[:width, :width], both[:width, width:]
    added = RIDGE * features.diagonal().mean().clamp(min=1e-12)
    weights = torch.linalg.solve(features + added * torch.eye(width, dtype=torch.float64), cross)
    bias = mean[width:] - mean[:width] @ weights
    return torch.cat((weights, bias[None])).t().contiguous().float()
