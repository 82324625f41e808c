"""What `srrc.optimize` did: a plain record for machines, and a table for people."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from srrc.optimization.checks import Parity
from srrc.optimization.frontier import Frontier
from srrc.optimization.plan import Saving
from srrc.optimization.quality import Quality

SECONDS = Mapping[str, Mapping[str, float]]
"""Phase -> {"dense", "gated", "ratio"}: medians of seconds a call, and of the ratios of calls made in turn."""


@dataclass(frozen=True)
class GateReport:
    """One gate of a file.

    index:     of its threshold in the input `srrc_thresholds`
    fraction:  of its units that the plan expects it to drop
    saved_s, overhead_s: what it saves when it drops everything, and costs by being there: seconds of one call
    """

    id: str
    index: int
    threshold: float
    fraction: float
    saved_s: float
    overhead_s: float


@dataclass(frozen=True)
class FileReport:
    """One file.

    export_peak_bytes: of this process until the model was on the disk, its own weights included
    bytes:    of the file and its weights
    parity:   of the file with open gates, with eager
    quality:  of the gated file, against the dense one; None without gates
    latency:  of both
    gates:    in the order of the thresholds
    left_out: pathway or gate -> why it has no gate
    measured: gate -> what it saves and costs, as in `gates`, for those that were measured and left out
    budgets:  budget -> thresholds that give it
    variants: names of the small files at budgets of their own
    frontier: the file at each of its budgets, where that was asked for
    planned:  what the controller expects: share of the dense latency, and drift
    """

    name: str
    inputs: Mapping[str, Sequence[Any]]
    outputs: Sequence[str]
    export_peak_bytes: int | None
    bytes: int
    parity: Parity
    quality: Quality | None
    latency: SECONDS
    gates: Sequence[GateReport] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Saving] = field(default_factory=dict)
    budgets: Mapping[float, Sequence[float]] = field(default_factory=dict)
    planned: Mapping[str, float] = field(default_factory=dict)
    variants: Sequence[str] = ()
    frontier: Frontier | None = None


@dataclass(frozen=True)
class Report:
    """All files of one model."""

    model: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    files: Sequence[FileReport]
    seconds: Mapping[str, float]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(
            json.dumps(dataclasses.asdict(self), indent=1, default=_plain) + "\n", encoding="utf-8"
        )

    def tables(self) -> list[Table]:
        """What to print."""
        return [
            _summary(self.files),
            *(_gates(each) for each in self.files if each.gates),
            *(_left_out(each) for each in self.files if each.left_out),
        ]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _summary(files: Sequence[FileReport]) -> Table:
    """A row a figure, a column a file: it fits a terminal whatever the model."""
    table = Table(title="against the dense export, same ONNX Runtime, in turn")
    table.add_column("")
    for each in files:
        table.add_column(each.name, justify="right")
    for name, tell in _FIGURES.items():
        cells = [tell(each) for each in files]
        if any(cells):
            table.add_row(name, *cells)
    for phase in dict.fromkeys(phase for each in files for phase in each.latency):
        found = [each.latency.get(phase) for each in files]
        table.add_row(
            f"{phase}, ms a call", *("" if one is None else f"{1e3 * one['gated']:.1f}" for one in found)
        )
        table.add_row(f"{phase}, of dense", *("" if one is None else f"{one['ratio']:.2f}" for one in found))
    return table


def _tokens(report: FileReport) -> str:
    tokens = report.parity.tokens
    return "" if tokens is None else f"{tokens[1]} of {tokens[0]}"


def _drift(report: FileReport) -> str:
    return "" if report.quality is None else f"{report.quality.kl:.4f}"


def _perplexity(report: FileReport) -> str:
    relative = None if report.quality is None else report.quality.relative_perplexity
    return "" if relative is None else f"{100 * (relative - 1):+.2f}%"


_FIGURES: Mapping[str, Callable[[FileReport], str]] = {
    "size, MB": lambda report: f"{report.bytes / 1e6:.0f}",
    "peak of the export, MB": lambda report: f"{(report.export_peak_bytes or 0) / 1e6:.0f}",
    "gates": lambda report: str(len(report.gates)),
    "off eager, gates open": lambda report: f"{max(report.parity.worst.values(), default=0.0):.1e}",
    "prompts with eager's tokens, gates open": _tokens,
    "drift, nats a token": _drift,
    "perplexity": _perplexity,
}


def _left_out(report: FileReport) -> Table:
    """A row a kind of gate and reason. What was measured is the mean of them."""
    table = Table(title=f"without a gate in {report.name}")
    for column in ("what", "how many", "why", "saves at most, ms", "costs, ms"):
        table.add_column(column, justify="left" if column in {"what", "why"} else "right")
    rows: dict[tuple[str, str], list[str]] = {}
    for name, reason in report.left_out.items():
        kind, _, place = name.partition(":")
        _, slash, part = place.partition("/")
        rows.setdefault((f"{kind}{slash}{part}", reason), []).append(name)
    for (what, reason), names in rows.items():
        known = [report.measured[name] for name in names if name in report.measured]
        means = [
            statistics.mean(getattr(each, part) for each in known) for part in ("saved", "overhead") if known
        ]
        table.add_row(what, str(len(names)), reason, *(f"{1e3 * mean:.3f}" for mean in means))
    return table


def _gates(report: FileReport) -> Table:
    table = Table(title=f"gates of {report.name}")
    for column in ("gate", "threshold", "drops", "saves at most, ms", "costs, ms"):
        table.add_column(column, justify="left" if column == "gate" else "right")
    for gate in report.gates:
        saved, cost = 1e3 * gate.saved_s, 1e3 * gate.overhead_s
        table.add_row(gate.id, f"{gate.threshold:.4g}", f"{gate.fraction:.0%}", f"{saved:.3f}", f"{cost:.3f}")
    return table
