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


Extras = Sequence[Mapping[str, Tensor]]
"""What the gated file gets beside its own inputs, once for each figure that is asked for."""


def of_decoder(
    interface: Interface, dense: Session, gated: Session, windows: Sequence[Tensor], extras: Extras
) -> list[Quality]:
    """One figure for each of `extras`. Reads each window in one call; the dense file reads it once for all of them.

    The first position is left out: nothing comes before it to tell it by.
    """
    drifts, losses, theirs, count = [Drift()] * len(extras), [0.0] * len(extras), 0.0, 0
    for window in windows:
        feed = first_inputs(interface.example, window)
        expected = dense.run(feed)["logits"][:, 1:]
        reference, targets = Reference(expected, "logits"), window[0, 2:]
        theirs += float(F.cross_entropy(expected[0, :-1].float(), targets, reduction="sum"))
        count += len(targets)
        for at, extra in enumerate(extras):
            actual = gated.run({**feed, **extra})["logits"][:, 1:]
            drifts[at] += reference.drift(actual)
            losses[at] += float(F.cross_entropy(actual[0, :-1].float(), targets, reduction="sum"))
    return [
        _predicting(drift, loss / count, theirs / count) for drift, loss in zip(drifts, losses, strict=True)
    ]


def _predicting(drift: Drift, loss: float, dense: float) -> Quality:
    """loss, dense: nats a token."""
    relative = math.exp(loss - dense)
    return Quality(drift.mean, drift.error, math.exp(loss), math.exp(dense), relative, drift.count)


def of_values(
    output: str, dense: Session, gated: Session, feeds: Sequence[Mapping[str, Tensor]], extras: Extras
) -> list[Quality]:
    """The drift of one output over some calls, for each of `extras`."""
    drifts = [Drift()] * len(extras)
    for feed in feeds:
        reference = Reference(dense.run(feed)[output], "logits" if output == "logits" else "values")
        for at, extra in enumerate(extras):
            drifts[at] += reference.drift(gated.run({**feed, **extra})[output])
    return [Quality(drift.mean, drift.error, None, None, None, drift.count) for drift in drifts]
