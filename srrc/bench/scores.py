"""How well one variant answered each scenario's requests, beside the eager model, and what that took."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srrc.bench.scenarios import SCENARIOS
from srrc.bench.statistics import mean_interval

Written = Mapping[str, Mapping[str, Any]]
"""Scenario -> what `Session.write` gave."""


def scores(written: Written, eager: Written, tasks: int) -> dict[str, dict[str, Any]]:
    """By scenario: what the score `measure`s, `score`, `change` against eager, both with a 95% interval over the tasks
    ("..._interval"), `same`: share of texts that are eager's, `agreed`: share of eager's tokens before the first other
    one, and `flops_of_dense`, `bytes_of_dense` of the steps.
    """
    found = {}
    for scenario in SCENARIOS:
        mine, dense = written.get(scenario.name), eager.get(scenario.name)
        if mine is None:
            continue
        asked = scenario.tasks(tasks)
        values = [scenario.score(text, task) for text, task in zip(mine["texts"], asked, strict=True)]
        entry: dict[str, Any] = {
            "measure": scenario.measure,
            "tasks": len(asked),
            **_interval("score", values),
        }
        entry |= {"change": None, "change_interval": None, "same": None, "agreed": None}
        if dense is not None:
            before = [scenario.score(text, task) for text, task in zip(dense["texts"], asked, strict=True)]
            entry |= _interval("change", [new - old for new, old in zip(values, before, strict=True)])
            entry["same"] = _mean([float(a == b) for a, b in zip(mine["texts"], dense["texts"], strict=True)])
            pairs = [*zip(mine["tokens"], dense["tokens"], strict=True)]
            tokens = sum(len(other) for _, other in pairs)
            entry["agreed"] = sum(agreed(one, other) for one, other in pairs) / tokens if tokens else None
        for name in ("flops", "bytes"):
            whole = mine["work"].get(f"{name}_dense", 0.0)
            entry[f"{name}_of_dense"] = mine["work"][f"{name}_executed"] / whole if whole else None
        found[scenario.name] = entry
    return found


def agreed(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _interval(name: str, values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = mean_interval(values, block=1)
    return {name: mean, f"{name}_interval": [low, high] if math.isfinite(high) else None}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
