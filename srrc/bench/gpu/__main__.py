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
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from srrc.backends.triton.card import unfit
from srrc.bench.gpu import child, children
from srrc.bench.gpu.cases import CASES, CEILINGS, LIMITS
from srrc.bench.gpu.report import Report, commit, measured, say, told
from srrc.paths import CACHE_VARIABLE

__all__ = ["main", "measured", "told"]

LIMIT = 180.0
"""Seconds that a case may take, unless `LIMITS` says otherwise, and that all together may take to compile."""

TOTAL = 460.0
"""Seconds that a run may take."""

NO_TIME = "no time"

LEAST = 5.0
"""Seconds below which a case is not begun."""


def main(arguments: list[str]) -> int:
    """Run what the arguments say."""
    options = _parser().parse_args(arguments)
    if options.child:
        os.environ[CACHE_VARIABLE] = os.devnull  # what was measured on this card before is to change nothing
        child.run(
            options.child, options.into, warming=options.warm, measure=not options.checks, kept=options.kept
        )
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
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that processes end with this one
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    _run(report, chosen, options)
    return int(bool(report.wrong or report.broken))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srrc.bench.gpu", description=__doc__)
    parser.add_argument(
        "--json", type=Path, help="write everything that was found to this file, after each case"
    )
    parser.add_argument("--only", action="append", help="a case's name; may be given again")
    parser.add_argument("--checks", action="store_true", help="measure nothing")
    longer = ", ".join(f"{name} {seconds:.0f}" for name, seconds in LIMITS.items())
    parser.add_argument("--limit", type=float, help=f"seconds that a case may take ({LIMIT:.0f}; {longer})")
    parser.add_argument(
        "--total", type=float, default=TOTAL,
        help="seconds after which no case is begun, and one that runs is killed (%(default)s)",
    )  # fmt: skip
    # What a case's own process is told.
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for hidden in ("--into", "--kept"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
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


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _run(report: Report, chosen: Sequence[str], options: argparse.Namespace) -> None:
    began = time.monotonic()
    until = began + options.total
    with tempfile.TemporaryDirectory(prefix="srrc-gpu-") as folder:
        flags = ["--kept", folder, *(["--checks"] if options.checks else [])]
        if not options.checks:
            _warm(chosen, Path(folder, "warm"), flags, min(options.limit or LIMIT, options.total))
        for name in (*(() if options.checks else (CEILINGS,)), *chosen):
            started, before = time.monotonic(), len(report.checks)
            for line in _lines(report, name, Path(folder), flags, options.limit, until - started):
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


def _warm(chosen: Sequence[str], folder: Path, flags: Sequence[str], limit: float) -> None:
    began = time.monotonic()
    folder.mkdir()
    late = children.warm(chosen, folder, flags, limit)
    say(f"compiled in {time.monotonic() - began:.0f} s")
    for name in late:
        say(f"{name} was not compiled after {limit:.0f} s: the rest is compiled in its turn")


def _lines(
    report: Report, name: str, folder: Path, flags: Sequence[str], limit: float | None, left: float
) -> Iterator[Mapping[str, object]]:
    """What a case finds, or that none of the run's time is left for it."""
    if left < LEAST:
        yield {"kind": "skipped", "what": NO_TIME}
        return
    case = children.Child(name, folder, flags)
    yield from case.lines(min(limit or LIMITS.get(name, LIMIT), left))
    report.heard(name, case.said())


def _written(report: Report, path: Path) -> bool:
    try:
        report.write(path)
    except OSError as error:
        say(f"cannot write {path}: {error.strerror or error}")
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
