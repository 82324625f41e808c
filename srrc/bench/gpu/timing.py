"""How long calls take on the GPU, between events that are queued while it sleeps: launches from Python cost nothing."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Call = Callable[[], object]
Config = TypeVar("Config")

REPLAYS = 15

ASLEEP = 400_000
"""Cycles for which the card sleeps at first, some 0.2 milliseconds; twice as many where it woke too early."""

LONGEST = 200_000_000
"""It sleeps no longer: something in the calls waits for it."""


@dataclass
class Mode:
    """How a case's process runs.

    warming: run each call once and time nothing, so that all is compiled and lies in the caches on the disk
    kept:    a folder of the whole run, where a process leaves what the case's next one would make again
    """

    warming: bool = False
    kept: Path | None = None


MODE = Mode()

MOST_BYTES, MOST_SETS = 2 << 30, 1024


def copies(*tensors: Tensor, read: float = 1.0, beyond: int = 256 << 20) -> list[tuple[Tensor, ...]]:
    """Sets of equal tensors, of which calls in turn read more than a cache holds: they read from memory.

    read: the fraction of a set that a call reads
    """
    size = max(1, sum(t.numel() * t.element_size() for t in tensors))
    wanted = -(-beyond // max(1, int(read * size)))
    count = 1 if MODE.warming else min(wanted, MOST_SETS, max(2, MOST_BYTES // size))
    return [tensors, *(tuple(t.clone() for t in tensors) for _ in range(count - 1))]


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One graph of all calls in turn, after each has run once."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


ROUNDS = 64
"""Calls in a graph: launching the graph takes as long as a few of the shortest."""


def milliseconds(calls: Sequence[Call]) -> float:
    """What one of the calls takes: the median over `REPLAYS` replays of a graph of `ROUNDS` calls or more, in turn.

    Where one takes some milliseconds, a graph of two rounds will do.
    """
    if MODE.warming:
        return _once(calls[0])
    # 2 milliseconds or more: launching the graph is lost in it.
    times = 2 if _medians(capture(calls[:1]).replay, 1) >= 2.0 else -(-ROUNDS // len(calls))
    graph = capture(list(calls) * times)
    graph.replay()
    return _medians(graph.replay, REPLAYS) / (len(calls) * times)


def queued_milliseconds(call: Call, *, calls: int = 10) -> float:
    """What the call takes where it is no graph of ours: the median over `REPLAYS` times `calls` of them in a row.

    They are all queued before the first begins, as long as nothing in them waits for the card.
    """
    _once(call)
    if MODE.warming:
        return _once(call)

    def several() -> None:
        for _ in range(calls):
            call()

    several()
    return _medians(several, REPLAYS) / calls


def quickest(space: Iterable[Config], time: Callable[[Config], float]) -> dict[Config, float]:
    """The time of each configuration, the quickest first; those that do not run are left out.

    Raises what the last one raised where none runs.
    """
    found: dict[Config, float] = {}
    failed: Exception | None = None
    for config in space:
        try:
            found[config] = time(config)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (compilers and drivers raise what they like)
            failed = error
    if not found and failed is not None:
        raise failed
    return dict(sorted(found.items(), key=lambda each: each[1]))


def _medians(run: Call, rounds: int) -> float:
    """The median milliseconds of so many runs."""
    asleep = ASLEEP
    found: list[float] = []
    while len(found) < rounds:
        taken, hidden = _between_events(run, asleep)
        if hidden or asleep >= LONGEST:
            found.append(taken)
        else:
            asleep *= 2
    return statistics.median(found)


def _between_events(run: Call, asleep: int) -> tuple[float, bool]:
    """Milliseconds on the device, and whether all was queued before it woke."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(asleep)  # type: ignore[no-untyped-call]  # noqa: SLF001
    start.record()
    run()
    end.record()
    hidden = not start.query()  # type: ignore[no-untyped-call]
    end.synchronize()
    return float(start.elapsed_time(end)), hidden


def _once(call: Call) -> float:
    call()
    torch.cuda.synchronize()
    return 1.0
