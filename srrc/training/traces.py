"""Traces of the full model: how much its output hangs on each row of each gated op, and what that can be told from.

Let y be drawn from the model's own output. The squared gradient of log p(y) with respect to what an op gives, summed
over its width, is the row's share of the Fisher information: to second order, an error e there moves the output by
KL = e' F e / 2, and so it measures what the row contributes, to its own token and to all that attend to it later. It
varies far more between tokens than between ops, so its logarithm is averaged over all ops of a pass, and predicted from
each op's own input by ridge regression: the semantic importance head. Moments are all that is held, [K + 1, K + 1] in
float64 an op, whatever the number of tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srrc.relevance.basis import Moments
from srrc.relevance.probe import direction, ridge
from srrc.training.routed import Routed

SAMPLES = 2
"""Outputs drawn for each batch."""

_SMALLEST = 1e-20


class Traces:
    """What was seen of each gated op's rows.

    skip: leading positions of each sequence that are not looked at
    """

    def __init__(self, routed: Routed, skip: int = 1) -> None:
        self._routed, self._skip = routed, skip
        self._moments: dict[str, Moments] = {}

    def add(self, arguments: Sequence[Any], draw: torch.Generator) -> None:
        """Look at one batch: a pass forward, and one backward for each of `SAMPLES` outputs. Needs logits."""
        with torch.enable_grad():
            logits, inputs, outputs = self._routed.watched(arguments)
            wanted = list(outputs.values())
            power = [torch.zeros(()) for _ in wanted]
            for index in range(SAMPLES):
                with torch.no_grad():
                    chance = logits.float().softmax(-1).reshape(-1, logits.shape[-1])
                    token = torch.multinomial(chance, 1, generator=draw).view(*logits.shape[:-1], 1)
                likely = logits.float().log_softmax(-1).gather(-1, token).sum()
                grads = torch.autograd.grad(likely, wanted, retain_graph=index + 1 < SAMPLES)
                power = [
                    held + grad.float().square().sum(-1) for held, grad in zip(power, grads, strict=True)
                ]
        logs = torch.stack([held[:, self._skip :].clamp(min=_SMALLEST).log() for held in power])
        target = (logs - logs.mean((1, 2), keepdim=True)).mean(0).reshape(-1, 1)
        for name, x in inputs.items():
            features = direction(x[:, self._skip :].reshape(-1, x.shape[-1]).float())
            both = torch.cat((features, target), -1)
            moments = self._moments.setdefault(name, Moments(both.shape[-1]))
            moments.add(both[both.isfinite().all(-1)])

    def probes(self) -> dict[str, Tensor]:
        """By the id of each op's first gate: predicts the log of a row's share, centred. float32 [K + 1]."""
        return {name: ridge(held, len(held.mean) - 1)[0] for name, held in self._moments.items()}

    def explained(self) -> Mapping[str, float]:
        """By the same ids: how much of the target's variance the probe explains, on what it was fitted to."""
        found = {}
        for name, probe in self.probes().items():
            covariance, width = self._moments[name].covariance, len(probe) - 1
            weights = probe[:-1].double()
            cross = covariance[:width, width] @ weights
            left = covariance[width, width] - 2 * cross + weights @ covariance[:width, :width] @ weights
            found[name] = float(1 - left / covariance[width, width].clamp(min=1e-30))
        return found
