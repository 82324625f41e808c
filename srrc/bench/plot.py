"""Drift against speed, as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srrc.errors import OptionError

_FLOOR = 1e-8
"""Nats a token that stand for none: the scale is logarithmic."""

_MARKS = {"routed": ("o-", "srr at budgets"), "random": ("x--", "random routing at the same budgets")}


def check_plotting() -> None:
    """Raises OptionError where matplotlib is missing."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise OptionError("--plot needs matplotlib; pip install 'srrc[docs]'") from None


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Write a picture of every variant whose drift and speed are known, in the format of the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = [
        row for row in result["variants"] if row["kl"] is not None and row["decode_tokens_per_s"] is not None
    ]
    for kind, (mark, label) in _MARKS.items():
        rows = [row for row in known if row["kind"] == kind]
        if rows:
            axes.plot(
                [row["decode_tokens_per_s"] for row in rows], [_drift(row) for row in rows], mark, label=label
            )
    for row in known:
        point = (row["decode_tokens_per_s"], _drift(row))
        if row["budget"] is None:
            axes.plot(*point, "s", label=row["name"])
        else:
            axes.annotate(f"{row['budget']:g}", point, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel(f"decoded tokens a second, {result['machine']['threads']} threads")
    axes.set_ylabel("KL(eager, variant), nats a token")
    axes.set_title(f"{result['model']}, {result['settings']['dtype']}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _drift(row: Mapping[str, Any]) -> float:
    return max(float(row["kl"]), _FLOOR)
