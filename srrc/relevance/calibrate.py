"""Measures all gates of a graph over batches of real inputs, and keeps a state on disk to go on from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from srrc.profile import GateCost, GateProfile
from srrc.relevance import checkpoint, information
from srrc.relevance.checkpoint import State
from srrc.relevance.drift import Reference
from srrc.relevance.information import FRACTIONS, Measured, Output, Settings
from srrc.relevance.replay import GateLike, Replay, closed

Progress = Callable[[str], None]
"""Called with a gate's id whenever one more step of `steps(...)` is done."""


def steps(replay: Replay, batches: int) -> int:
    """How many steps `measure_gates` reports over that many batches."""
    return 2 * batches * len(replay.places)


def measure_gates(
    replay: Replay,
    batches: Sequence[Sequence[Any]],
    output: Output,
    settings: Settings,
    *,
    key: str = "",
    path: Path | None = None,
    progress: Progress = lambda gate_id: None,
) -> dict[str, GateProfile]:
    """The curve of every gate of `replay`.

    batches: arguments of the graph, one sequence a batch; only one batch is worked on at a time, so memory
             does not grow with their number
    output:  picks the tensor whose drift is measured
    key, path: where the state is kept after each gate, and what it must be of to be gone on with; it is
             removed at the end. Without a path nothing is kept.
    Raises ProfileError where the state cannot be written.
    """
    state = None if path is None else checkpoint.load(path, key)
    if state is None:
        state = State(key, _observe_all(replay, batches, settings, progress))
    else:
        for _ in range(len(batches) * len(replay.places)):
            progress("")
    for number, arguments in enumerate(batches):
        if number < state.batch:
            for place in replay.places:
                progress(place.gate.id)
            continue
        _intervene_batch(replay, arguments, output, settings, state, path, progress)
        state.batch, state.done = number + 1, set()
    if path is not None:
        path.unlink(missing_ok=True)
    return {place.gate.id: _profile(place.gate, state.found[place.gate.id]) for place in replay.places}


def measure_thresholds(
    replay: Replay,
    batches: Sequence[Sequence[Any]],
    curves: Mapping[str, GateProfile],
    settings: Settings,
    progress: Progress = lambda gate_id: None,
) -> dict[str, GateProfile]:
    """The gates of `curves`, those that stand in `replay`, with thresholds and guards as these batches have them.

    Drift stays what it was: for a model that differs little from the one it was measured on. Reports as many steps as
    `measure_gates`.
    """
    found = _observe_all(replay, batches, settings, progress)
    for arguments in batches:
        for place in information.guard(replay, arguments, found, settings):
            progress(place.gate.id)
    return {
        name: replace(curves[name], quantiles=entry.quantiles, kept_low=entry.kept_low, scale=entry.scale)
        for name, entry in found.items()
    }


def run_dense(replay: Replay, arguments: Sequence[Any], output: Output, settings: Settings) -> Reference:
    """The output with all gates open, to measure against."""
    with closed({}, [place.gate for place in replay.places]):
        return Reference(output(replay.finish(replay.begin(arguments), 0)), settings.how)


def _observe_all(
    replay: Replay, batches: Sequence[Sequence[Any]], settings: Settings, progress: Progress
) -> dict[str, Measured]:
    found = {place.gate.id: Measured() for place in replay.places}
    for arguments in batches:
        for place in information.observe(replay, arguments, found, settings):
            progress(place.gate.id)
    for entry in found.values():
        entry.seal()
    return found


def _intervene_batch(
    replay: Replay,
    arguments: Sequence[Any],
    output: Output,
    settings: Settings,
    state: State,
    path: Path | None,
    progress: Progress,
) -> None:
    reference = run_dense(replay, arguments, output, settings)
    for place in replay.places:
        if place.gate.id in state.done:
            progress(place.gate.id)
    measured = information.intervene(
        replay, arguments, reference, output, state.found, settings, state.done.__contains__
    )
    for place in measured:
        state.done.add(place.gate.id)
        if path is not None:
            checkpoint.save(state, path)
        progress(place.gate.id)


def _profile(gate: GateLike, entry: Measured) -> GateProfile:
    drift, error = information.curve(entry)
    return GateProfile(
        id=gate.id,
        quantiles=entry.quantiles,
        fractions=torch.tensor(FRACTIONS, dtype=torch.float32),
        drift=drift,
        error=error,
        kept_low=entry.kept_low,
        cost=GateCost(
            units=entry.units,
            flops=gate.flops,
            bytes=gate.bytes,
            overhead=gate.overhead,
            fixed_flops=gate.fixed_flops,
            fixed_bytes=gate.fixed_bytes,
            spared_bytes=gate.spared_bytes,
        ),
        scale=entry.scale,
    )
