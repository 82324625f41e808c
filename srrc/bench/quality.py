"""Perplexity and drift of one variant against the reference, from what both made of the same tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srrc.bench.statistics import mean_interval

Reads = Mapping[str, Mapping[str, Any]]
"""Domain -> the fields of `srrc.bench.reading.Read`."""


def quality(reads: Reads, reference: Reads | None) -> dict[str, Any]:
    """Over all domains together, and under "domains" over each.

    perplexity; with a reference: relative_perplexity (1 is the reference's), kl (nats a token), both with a
    95% interval under "..._interval", argmax_agreement (0..1), logits_apart (largest difference of a logit).
    """
    domains = {name: _figures([read], _of(reference, name)) for name, read in reads.items()}
    together = _figures(list(reads.values()), [read for name in reads for read in _of(reference, name)])
    return {**together, "domains": domains}


def _of(reference: Reads | None, domain: str) -> list[Mapping[str, Any]]:
    return [reference[domain]] if reference is not None and domain in reference else []


def _figures(reads: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    loss = _joined(reads, "loss")
    found: dict[str, Any] = dict.fromkeys(
        ("perplexity", "relative_perplexity", "relative_perplexity_interval", "kl", "kl_interval")
    )
    found |= {"argmax_agreement": None, "logits_apart": None, "tokens": len(loss)}
    if not loss:
        return found
    found["perplexity"] = math.exp(math.fsum(loss) / len(loss))
    dense = _joined(reference, "loss")
    if len(dense) != len(loss):
        return found
    mean, low, high = mean_interval([one - other for one, other in zip(loss, dense, strict=True)])
    found["relative_perplexity"] = _exp(mean)
    found["relative_perplexity_interval"] = _known(_exp(low), _exp(high))
    if loss is dense or reads == reference:
        return found | {"kl": 0.0, "kl_interval": [0.0, 0.0], "argmax_agreement": 1.0, "logits_apart": 0.0}
    kl, same = _joined(reads, "kl"), _joined(reads, "same")
    if len(kl) == len(loss):
        mean, low, high = mean_interval(kl)
        found |= {"kl": mean, "kl_interval": _known(max(low, 0.0), high)}
        found["argmax_agreement"] = sum(same) / len(same)
        found["logits_apart"] = max(read["apart"] for read in reads)
    return found


def _joined(reads: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for read in reads for value in read[name]]


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _known(low: float, high: float) -> list[float] | None:
    return [low, high] if math.isfinite(high) else None
