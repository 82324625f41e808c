"""`srrc bench`: every variant of a model against every other, on this machine, in one run."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from srrc import models_zoo
from srrc.bench.lineup import Lineup
from srrc.bench.measure import Run
from srrc.bench.plot import check_plotting, plot
from srrc.bench.result import Result, make_result
from srrc.bench.settings import Settings
from srrc.bench.table import remarks, tables
from srrc.bench.variants import Variant, variants
from srrc.bench.workload import Workload, make_workload
from srrc.errors import OptionError, SrrError
from srrc.profile import Profile

_LOG_WIDTH = 160
"""Columns of the table where there is no terminal to ask."""


def bench(
    settings: Settings,
    *,
    kinds: Sequence[str] | None = None,
    json_path: Path | None = None,
    plot_path: Path | None = None,
    console: Console | None = None,
) -> Result:
    """Measure, print a table, and write the figures (JSON) and the plot where paths are given.

    kinds: of `srrc.bench.variants.KINDS`; by default all, routed ones only with a profile
    console: where the table goes; standard output by default
    Raises OptionError for settings that cannot be measured with and paths that cannot be written, ModelError
    for a model that cannot be loaded or writes no text, SrrError where no variant is left. A variant that
    fails leaves a remark under the table.
    """
    settings = settings.check()
    chosen = variants(kinds, settings.budgets, profile=settings.profile is not None)
    for path in (json_path, plot_path):
        if path is not None and not path.parent.is_dir():
            raise OptionError(f"cannot write {path}: there is no folder {path.parent}")
    if plot_path is not None:
        check_plotting()
    if settings.profile is not None:
        Profile.load(settings.profile)  # what is wrong with it is said before anything is started
    progress = Console(stderr=True)
    with progress.status(f"loading {settings.model}") as status:
        for result in _measure(
            settings, chosen, _workload(settings), lambda text: _say(progress, status, text)
        ):
            if json_path is not None:
                _write_json(json_path, result)
    console = console or Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    for table in tables(result):
        console.print(table)
    for line in remarks(result):
        console.print(line, markup=False, highlight=False)
    if plot_path is not None:
        plot(result, plot_path)
    if not result["variants"]:
        raise SrrError(f"no variant of {settings.model!r} could be measured: {result['failed'][0]['error']}")
    return result


def _workload(settings: Settings) -> Workload:
    """Loads the model once here, so that what is wrong with it is said once, and drops it again."""
    import torch

    model, tokenizer = models_zoo.load(settings.model, dtype=getattr(torch, settings.dtype))
    return make_workload(model, tokenizer, settings)


def _measure(settings: Settings, chosen: Sequence[Variant], workload: Workload, say: Any) -> Iterator[Result]:
    """The result after each part of the run, so that an interruption loses only what was not measured yet."""
    with (
        tempfile.TemporaryDirectory(prefix="srrc-bench-", ignore_cleanup_errors=True) as name,
        Lineup([each.process for each in chosen], Path(name), settings.threads, cold=settings.cold) as lineup,
    ):
        run = Run(settings, chosen, workload, lineup, Path(name), say)
        for samples in run.measure():
            yield make_result(settings, chosen, samples, lineup.failed)
        if settings.cold:
            run.measure_warm(samples)
            yield make_result(settings, chosen, samples, lineup.failed)


def _say(console: Console, status: Any, text: str) -> None:
    """On a terminal the status line; elsewhere, as in a log, a line."""
    status.update(text)
    if not console.is_terminal:
        console.print(text, markup=False, highlight=False)


def _write_json(path: Path, result: Result) -> None:
    """Under a temporary name first: an interrupted run leaves the file as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OptionError(f"cannot write {path}: {error.strerror}") from error
