"""How far a gated file is from the dense one: on held-out text, or on random inputs where a model reads none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from srrc.backends.onnx.decoding import first_inputs
from srrc.backends.onnx.interfaces.base import Interface
from srrc.backends.onnx.session import Session
from srrc.relevance.drift import Drift, Reference


@dataclass(frozen=True)
class Quality:
    """kl: mean KL(dense, gated), nats a token (`srrc.relevance.drift` where the output is no logits), and its standard
    error; perplexity of both, and their ratio; None where nothing can be predicted. tokens: how many were judged.
    """

    kl: float
    kl_error: float
    perplexity: float | None
    dense_perplexity: float | None
    relative_perplexity: float | None
    tokens: int


def of_decoder(
    interface: Interface,
    dense: Session,
    gated: Session,
    windows: Sequence[Tensor],
    thresholds: Mapping[str, Tensor],
) -> Quality:
    """Read each window in one call. The first position is left out: nothing comes before it to tell it by."""
    drift, losses, reference_losses, count = Drift(), 0.0, 0.0, 0
    for window in windows:
        feed = first_inputs(interface.example, window)
        expected = dense.run(feed)["logits"][:, 1:]
        actual = gated.run({**feed, **thresholds})["logits"][:, 1:]
        drift += Reference(expected, "logits").drift(actual)
        targets = window[0, 2:]
        losses += float(F.cross_entropy(actual[0, :-1].float(), targets, reduction="sum"))
        reference_losses += float(F.cross_entropy(expected[0, :-1].float(), targets, reduction="sum"))
        count += len(targets)
    ours, theirs = losses / count, reference_losses / count
    return Quality(
        drift.mean, drift.error, math.exp(ours), math.exp(theirs), math.exp(ours - theirs), drift.count
    )


def of_values(
    output: str,
    dense: Session,
    gated: Session,
    feeds: Sequence[Mapping[str, Tensor]],
    thresholds: Mapping[str, Tensor],
) -> Quality:
    """The drift of one output over some calls."""
    drift = Drift()
    for feed in feeds:
        reference = Reference(dense.run(feed)[output], "logits" if output == "logits" else "values")
        drift += reference.drift(gated.run({**feed, **thresholds})[output])
    return Quality(drift.mean, drift.error, None, None, None, drift.count)
