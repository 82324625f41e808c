"""One file at every budget that it serves, and with its branches closed for a growing share of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.session import Session
from srrc.errors import OptionError
from srrc.optimization.plan import CLOSED
from srrc.optimization.quality import Quality
from srrc.optimization.reader import Reader
from srrc.optimization.timing import Variant, over_loads, time_variants
from srrc.optimization.timing import ratios as ratios_of
from srrc.profile import Profile

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Point:
    """budget: the one asked for, or the share of tokens whose branches are closed; latency: phase -> ratio to dense."""

    budget: float
    quality: Quality
    latency: Mapping[str, float]


@dataclass(frozen=True)
class Frontier:
    """budgets: by budget, 1 first; skipped: every gate on a branch closed for the same share of tokens, none first."""

    budgets: Sequence[Point]
    skipped: Sequence[Point]


def measure_frontier(
    reader: Reader,
    dense: Session,
    gated: Session,
    gates: Sequence[str],
    budgets: Mapping[float, Sequence[float]],
    profile: Profile,
    rounds: int,
) -> Frontier:
    """Every point against the dense file, in one run.

    gates: ids in the order of the file's thresholds
    """
    skipped = {fraction: [_at(profile, gate, fraction) for gate in gates] for fraction in FRACTIONS}
    return Frontier(
        _points(reader, dense, gated, budgets, rounds),
        _points(reader, dense, gated, skipped, rounds),
    )


def _at(profile: Profile, gate: str, fraction: float) -> float:
    """The threshold at which a gate on a branch drops this share of tokens; a head's stays open."""
    if not gate.startswith("residual:") or fraction == 0:
        return -1.0
    return CLOSED if fraction == 1 else profile.gates[gate].threshold(fraction)


def _points(
    reader: Reader, dense: Session, gated: Session, limits: Mapping[float, Sequence[float]], rounds: int
) -> list[Point]:
    extra = {key: {THRESHOLDS: torch.tensor(each, dtype=torch.float32)} for key, each in limits.items()}
    latency: dict[float, dict[str, float]] = {key: {} for key in limits}
    opened = {THRESHOLDS: torch.full((len(next(iter(limits.values()))),), -1.0)}
    for calls in reader.calls():
        count = max(rounds, len(calls.feeds))
        open_ratio = over_loads(dense, gated, opened, calls.feeds, count)["ratio"]
        variants: dict[str, Variant] = {"open": (gated, opened)}
        variants |= {str(key): (gated, each) for key, each in extra.items()}
        times = time_variants(variants, calls.feeds, count)
        for key in limits:
            latency[key][calls.phase] = open_ratio * ratios_of(times[str(key)], times["open"])
    qualities = reader.quality(dense, gated, [*extra.values()])
    return [Point(key, quality, latency[key]) for key, quality in zip(limits, qualities, strict=True)]


def plot_frontier(frontier: Frontier, path: Path) -> None:
    """Latency against drift, and against the share of tokens skipped. Raises OptionError without matplotlib.

    Drift, not perplexity: on a few thousand tokens a perplexity is off by more than good gates change it.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise OptionError("plots need matplotlib; pip install 'srrc[docs]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    _draw(left, frontier.budgets, [point.quality.kl for point in frontier.budgets])
    left.set(
        xlabel="drift from the dense model, nats a token (KL)",
        ylabel="latency, of dense",
        title="at each budget of one file",
    )
    _draw(right, frontier.skipped, [point.budget for point in frontier.skipped])
    right.set(xlabel="share of tokens whose branches are closed", title="every gate on a branch closed alike")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axes: Any, points: Sequence[Point], across: Sequence[float]) -> None:
    for phase in points[0].latency:
        axes.plot(across, [point.latency[phase] for point in points], marker="o", label=phase)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
