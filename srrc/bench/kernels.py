"""`python -m srrc.bench.kernels`: the native kernels beside torch's functions and beside what memory gives.

All variants are asked in turn, round after round, so that a busy machine disturbs them alike; figures are
medians, and the ratios are medians of the ratios within a round.
"""

import ctypes
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from srrc.backends.cpu import build
from srrc.bench.kernel_cases import Call, Case, Pool, all_cases


@dataclass(frozen=True)
class Result:
    """One case: microseconds a call of ours and of torch's, GB/s of ours, and its share of the stream's."""

    op: str
    what: str
    dtype: str
    rows: int
    microseconds: float
    torch_microseconds: float
    speedup: float
    gigabytes_per_second: float
    of_stream: float


def _seconds(calls: list[Call]) -> float:
    # With one thread the time that other processes take from it can be left out.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for call in calls:
        call()
    return clock() - start


def _stream(values: torch.Tensor) -> Call:
    """A call that reads the whole pool with the fastest reader there is."""
    read = build.reader()
    return lambda: read(
        ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(values.numel() * values.element_size() // 4)
    )


def measure(pool: Pool, rounds: int, only: str, console: Console) -> tuple[list[Result], float]:
    """Run every case `rounds` times. Returns the results and the stream's GB/s."""
    cases = [case for case in all_cases(pool) if only in case.op]
    stream = [_stream(pool.values)]
    # A torch function that several cases share is timed once a round.
    baselines = {id(case.baseline): case.baseline for case in cases}
    times: dict[int, list[float]] = {key: [] for key in baselines}
    streams: list[float] = []
    ours: list[list[float]] = [[] for _ in cases]
    for _ in track(range(rounds + 1), "measuring", console=console, transient=True):
        streams.append(_seconds(stream))
        for key, calls in baselines.items():
            times[key].append(_seconds(calls))
        for case, seen in zip(cases, ours, strict=True):
            seen.append(_seconds(case.calls))
    size = pool.values.numel() * pool.item
    dtype = str(pool.values.dtype).removeprefix("torch.")
    results = [
        _result(
            case, dtype, pool.rows, seen[1:], times[id(case.baseline)][1:], [size / s for s in streams[1:]]
        )
        for case, seen in zip(cases, ours, strict=True)
    ]
    return results, size / statistics.median(streams[1:]) / 1e9


def _result(
    case: Case, dtype: str, rows: int, seconds: list[float], baseline: list[float], stream: list[float]
) -> Result:
    rates = [case.bytes_read / s for s in seconds]
    return Result(
        case.op,
        case.what,
        dtype,
        rows,
        statistics.median(seconds) / len(case.calls) * 1e6,
        statistics.median(baseline) / len(case.baseline) * 1e6,
        statistics.median(b / s for b, s in zip(baseline, seconds, strict=True)),
        statistics.median(rates) / 1e9,
        statistics.median(r / s for r, s in zip(rates, stream, strict=True)),
    )


def _table(results: list[Result], stream: float) -> Table:
    table = Table(
        title=f"stream {stream:.1f} GB/s, {torch.get_num_threads()} thread(s), {build.capability()}"
    )
    for name in ("op", "what", "dtype", "rows"):
        table.add_column(name)
    for name in ("us", "torch us", "speed-up", "GB/s", "of stream"):
        table.add_column(name, justify="right")
    for r in results:
        numbers = (f"{r.microseconds:.1f}", f"{r.torch_microseconds:.1f}", f"{r.speedup:.2f}")
        rate = (f"{r.gigabytes_per_second:.1f}", f"{r.of_stream:.0%}")
        table.add_row(r.op, r.what, r.dtype, str(r.rows), *numbers, *rate)
    return table


def main(
    megabytes: Annotated[int, typer.Option(help="Memory to walk over; should exceed every cache.")] = 256,
    rounds: Annotated[int, typer.Option(help="Rounds to take medians of.")] = 7,
    rows: Annotated[int, typer.Option(help="Rows of the input, 1 to 8.", min=1, max=8)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or both.")] = "both",
    only: Annotated[str, typer.Option(help="Only ops whose name has this.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here ('-': print).")
    ] = None,
) -> None:
    """Time the native kernels at the shapes of SmolLM2-135M."""
    console = Console(stderr=True)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if not build.ensure_built():
        refused = build.refusal()
        console.print(f"no native kernels: {refused.detail if refused else ''}")
        raise typer.Exit(1)
    report = []
    for name in ("float32", "bfloat16") if dtype == "both" else (dtype,):
        kind = getattr(torch, name)
        count = megabytes * (1 << 20) // kind.itemsize
        pool = Pool((torch.randn(count) * 0.04).to(kind), rows)
        with torch.no_grad():
            results, stream = measure(pool, rounds, only, console)
        report.append({"stream_gigabytes_per_second": stream, "results": [asdict(r) for r in results]})
        if json_file is None:
            Console(width=120).print(_table(results, stream))
    if json_file is not None:
        text = json.dumps({"threads": threads, "capability": build.capability(), "runs": report}, indent=1)
        if str(json_file) == "-":
            sys.stdout.write(text + "\n")
        else:
            json_file.write_text(text)


if __name__ == "__main__":
    typer.run(main)
