"""How long calls take on the GPU: replays of a CUDA graph between events, so that launches from Python cost nothing."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]

REPLAYS = 15


@dataclass
class Mode:
    """warming: run each call once and time nothing, so that all is compiled and lies in the caches on the disk."""

    warming: bool = False


MODE = Mode()


def copies(*tensors: Tensor, beyond: int = 256 << 20) -> list[tuple[Tensor, ...]]:
    """Sets of equal tensors, `beyond` bytes together, more than a cache holds: calls in turn read from memory."""
    size = sum(t.numel() * t.element_size() for t in tensors)
    return [tensors, *(tuple(t.clone() for t in tensors) for _ in range(min(63, beyond // max(1, size))))]


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
    times = 2 if _replayed(capture(calls[:1])) >= 2.0 else -(-ROUNDS // len(calls))
    graph = capture(list(calls) * times)
    graph.replay()
    return statistics.median(_replayed(graph) for _ in range(REPLAYS)) / (len(calls) * times)


def eager_milliseconds(call: Call, *, calls: int = 5) -> float:
    """The same for calls that cannot be captured: launches included, over `calls` of them."""
    _once(call)
    if MODE.warming:
        return 1.0

    def several() -> None:
        for _ in range(calls):
            call()

    return statistics.median(_between_events(several) for _ in range(REPLAYS)) / calls


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    return _between_events(graph.replay)


def _between_events(run: Call) -> float:
    """Milliseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _once(call: Call) -> float:
    call()
    torch.cuda.synchronize()
    return 1.0
