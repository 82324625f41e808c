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
    stream = torch.cuda.Stream()
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
    times = 2 if _slow(calls) else -(-ROUNDS // len(calls))
    graph = capture(list(calls) * times)
    taken = []
    graph.replay()
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return statistics.median(taken) / (len(calls) * times)


def eager_milliseconds(call: Call, *, calls: int = 5) -> float:
    """The same for calls that cannot be captured: launches included, over `calls` of them."""
    _once(call)
    if MODE.warming:
        return 1.0
    taken = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return statistics.median(taken) / calls


def _slow(calls: Sequence[Call]) -> bool:
    """Whether a call takes 2 milliseconds or more on the device, launches aside."""
    graph = capture(calls[:1])
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return bool(start.elapsed_time(end) >= 2.0)


def _once(call: Call) -> float:
    call()
    torch.cuda.synchronize()
    return 1.0
