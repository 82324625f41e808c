"""Check every kernel on the GPU that is here, and measure it: `python -m srrc.bench.gpu [--json FILE] [--only NAME]`.

Needs torch (2.11 or later), Triton and the repository, nothing else. Each case has a process of its own: what fails is
told and counted, and the rest goes on. Returns 1 if a check failed or a case broke, 2 where nothing can be run.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from srrc.backends.triton.card import unfit
from srrc.bench.gpu import child, children
from srrc.bench.gpu.cases import CASES, CEILINGS
from srrc.bench.gpu.report import Report, commit, measured, say, told
from srrc.paths import CACHE_VARIABLE

__all__ = ["main", "measured", "told"]

LIMIT = 180.0
"""Seconds that a case may take, and that all together may take to compile."""


def main(arguments: list[str]) -> int:
    """Run what the arguments say."""
    options = _parser().parse_args(arguments)
    if options.child:
        os.environ[CACHE_VARIABLE] = os.devnull  # what was measured on this card before is to change nothing
        child.run(options.child, options.into, warming=options.warm, measure=not options.checks)
        return 0
    unknown = sorted(set(options.only or ()) - set(CASES))
    if unknown:
        say(f"no case is called {' or '.join(unknown)}; there are {', '.join(CASES)}")
        return 2
    why = _cannot_run()
    if why is not None:
        say(why)
        return 2
    report = Report(_about())
    if options.json and not _written(report, options.json):
        return 2
    chosen = [case for case in CASES if not options.only or case in options.only]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes end with this one
    _run(report, chosen, options)
    return int(bool(report.wrong or report.broken))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srrc.bench.gpu", description=__doc__)
    parser.add_argument(
        "--json", type=Path, help="write everything that was found to this file, after each case"
    )
    parser.add_argument("--only", action="append", help="a case's name; may be given again")
    parser.add_argument("--checks", action="store_true", help="measure nothing")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds that a case may take (%(default)s)"
    )
    for hidden in ("--child", "--into"):  # what a case's own process is told
        parser.add_argument(hidden, type=Path if hidden == "--into" else str, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    return parser


def _cannot_run() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    refusal = unfit(torch.device("cuda", torch.cuda.current_device()))
    return None if refusal is None else f"{refusal.reason.value}: {refusal.detail}"


def _about() -> dict[str, object]:
    try:
        triton: str | None = version("triton")
    except PackageNotFoundError:
        triton = None  # under another name, as torch's nightly builds have it
    card = torch.cuda.get_device_name()
    about = {"card": card, "torch": torch.__version__, "triton": triton, "cores": os.cpu_count(), **commit()}
    say(", ".join(f"{name} {value}" for name, value in about.items()))
    return about


def _run(report: Report, chosen: Sequence[str], options: argparse.Namespace) -> None:
    began = time.monotonic()
    flags = ["--checks"] if options.checks else []
    with tempfile.TemporaryDirectory(prefix="srrc-gpu-") as folder:
        if not options.checks:
            warmed = Path(folder, "warm")
            warmed.mkdir()
            late = children.warm(chosen, warmed, flags, options.limit)
            say(f"compiled in {time.monotonic() - began:.0f} s")
            for name in late:
                say(f"{name} was not compiled after {options.limit:.0f} s: the rest is compiled in its turn")
        for name in (*(() if options.checks else (CEILINGS,)), *chosen):
            started, before = time.monotonic(), len(report.checks)
            for line in children.Child(name, Path(folder), flags).lines(options.limit):
                text = report.take(name, line)
                if text is not None:
                    say(text)
            report.seconds[name] = round(time.monotonic() - started, 1)
            say(f"{name}: {len(report.checks) - before} checks, {report.seconds[name]:.0f} s")
            report.finished = name == chosen[-1]
            if options.json:
                _written(report, options.json)
    say(
        f"{len(report.checks)} checks, {report.wrong} wrong; {len(report.broken)} broken,"
        f" {len(report.skipped)} skipped; {time.monotonic() - began:.0f} s"
    )


def _written(report: Report, path: Path) -> bool:
    try:
        report.write(path)
    except OSError as error:
        say(f"cannot write {path}: {error.strerror or error}")
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
