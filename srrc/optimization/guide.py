"""The README.md that goes with the files."""

import re
from pathlib import Path

from srrc.optimization.report import FileReport, Report


def write_guide(report: Report, path: Path) -> None:
    """Write what the files take, how to run them, and how they were measured."""
    parts = [
        f"# {report.model}, as ONNX\n",
        "Written by `srrc optimize`. Everything measured is in `srrc_report.json`.\n",
    ]
    parts += [_file(each) for each in report.files]
    if any(each.gates for each in report.files):
        parts.append(_THRESHOLDS)
    path.write_text("\n".join(parts), encoding="utf-8")


def _file(report: FileReport) -> str:
    lines = [f"## {report.name}\n", "| input | shape |", "| --- | --- |"]
    lines += [f"| {name} | {shape} |" for name, shape in _inputs(report).items()]
    lines += ["", f"Outputs: {', '.join(report.outputs[:3])}{' ...' if len(report.outputs) > 3 else ''}.\n"]
    for phase, found in report.latency.items():
        lines.append(
            f"- {phase}: {1e3 * found['gated']:.1f} ms a call, {found['ratio']:.2f} of the same model without gates"
        )
    if report.quality is not None:
        lines.append(f"- drift from the dense model: {report.quality.kl:.4f} nats a token")
        if report.quality.relative_perplexity is not None:
            lines.append(f"- perplexity: {100 * (report.quality.relative_perplexity - 1):+.2f}%")
    return "\n".join(lines) + "\n"


def _inputs(report: FileReport) -> dict[str, str]:
    """Shapes by name; the layers of a cache, which are alike, as one."""
    found: dict[str, str] = {}
    for name, shape in report.inputs.items():
        found.setdefault(re.sub(r"\.\d+\.", ".N.", name), ", ".join(map(str, shape)))
    return found


_THRESHOLDS = """## Another budget

The input `srrc_thresholds` may be left out; its default is the budget that the files were made for. `srrc_report.json`
lists, under `budgets`, the thresholds for others: for 1.0 all are -1, nothing is skipped, and the answers are the dense
model's.
"""
