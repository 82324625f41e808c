"""What a phase learned, as a picture beside its numbers. Nothing is drawn where matplotlib is not installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SMOOTH = 8
"""Steps of one budget whose mean is a point: single batches differ by half."""


def plot_joint(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """KL of each budget over the steps, relative to what it was at first. history: numbers of each step."""
    figure, axes = _figure()
    if figure is None:
        return
    names = sorted({name for numbers in history for name in numbers if name.startswith("kl/")}, reverse=True)
    for name in names:
        steps = [step for step, numbers in enumerate(history, 1) if name in numbers]
        values = [numbers[name] for numbers in history if name in numbers]
        means = [_mean(values[max(0, at - _SMOOTH) : at]) for at in range(1, len(values) + 1)]
        first = _mean(values[: max(1, min(4, len(values)))])
        if first > 0:
            axes.plot(steps, [mean / first for mean in means], label=f"budget {name[3:]}")
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set(xlabel="step", ylabel="KL, of what it was at first")
    axes.legend()
    figure.savefig(str(path), dpi=120)


def plot_router(drifts: Mapping[str, Sequence[float]], budgets: Sequence[float], path: Path) -> None:
    """KL by the power that emphasis was tried at, relative to none. drifts: power -> KL at each of `budgets`."""
    figure, axes = _figure()
    if figure is None:
        return
    powers = sorted(map(float, drifts))
    tried = [drifts[f"{power:g}"] for power in powers]
    for index, budget in enumerate(budgets):
        axes.plot(powers, [each[index] / tried[0][index] for each in tried], "o-", label=f"budget {budget:g}")
    axes.set(xlabel="power of a token's Fisher share", ylabel="KL, of that without emphasis")
    axes.legend()
    figure.savefig(str(path), dpi=120)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None, None
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
