"""The calibration door: `srrc.calibrate(model, tokenizer, texts)` -> `Profile`.

The model is captured once by Dynamo, its graph gets every gate that may ever stand in it, and that graph is
interpreted over windows of text (see `srrc.relevance`). No parameter is changed and nothing is trained.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from srrc import fingerprint
from srrc.calibration_inputs import QUICK, Effort, Inputs, digest, effort_of, own_inputs, text_inputs
from srrc.context_vectors import context_vectors
from srrc.control.controller import plan
from srrc.errors import ModelError, OptionError, ProfileError
from srrc.gate_vectors import gate_vectors
from srrc.gated_model import GatedGraph, GatedModel
from srrc.passes.gating.blocks import BLOCKS
from srrc.profile import Joint, Profile
from srrc.relevance import information
from srrc.relevance.calibrate import measure_gates, measure_thresholds, run_dense, steps
from srrc.relevance.drift import Drift
from srrc.relevance.information import Settings
from srrc.relevance.replay import Replay

JOINT_DRIFTS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Added drifts (nats a token) at which the joint drift of the controller's plan is measured."""

USEFUL_DRIFT = 0.2
"""A layer gate that no plan of this added drift (nats a token) takes is left out of the profile."""


def calibrate(
    model: nn.Module,
    tokenizer: Any = None,
    texts: str | Sequence[str] | None = None,
    *,
    batches: Iterable[Any] | None = None,
    windows: int | None = None,
    length: int | None = None,
    quick: bool = False,
    channels: bool = True,
    neurons: bool = False,
    layers: bool = False,
    coarse: int | None = None,
    blocks: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    learned: Mapping[str, Tensor] = MappingProxyType({}),
    curves: Profile | None = None,
) -> Profile:
    """Measure what each gate of `model` is worth, by intervention on real inputs.

    tokenizer, texts: as in transformers; without texts, topics of the Python reference
    batches:    instead of both, inputs of a model that reads no text: each a mapping of keyword arguments, a
                tuple of arguments, or one tensor; all of the same shapes. The last third checks many gates at
                once
    windows, length: how many windows of how many tokens; more and longer is slower and more exact
    quick:      a coarse profile in about a sixth of the time
    channels:   measure gates on channels and neurons, which the CPU backend has and the ONNX backend has not
    neurons:    also measure gates on neurons before `up` is computed
    layers:     also measure gates on whole residual branches, which skip a layer's attention or MLP for a token.
                Three more interventions a branch. Tried on tiny models only; on small ones little is to be expected,
                since every branch matters to most tokens. Those that no sensible plan would use are left out
    coarse:     also measure gates that let weights of 4 or 8 bits stand in for a branch's own, for the ONNX backend
    blocks:     also measure gates on so many blocks of each MLP's neurons, in place of those on single neurons and
                channels of MLPs, which the ONNX backend has not
    progress:   a bar on standard error
    checkpoint: a file kept up to date after each gate; a calibration that finds it goes on where that one
                stopped. It is removed at the end
    learned:    vectors that training found ("GATE/emphasis", "GATE/norm"), which the gates are measured with
    curves:     the profile of a model that this one hardly differs from, as by an adapter: its gates are taken with
                their drift, and thresholds and joint drift alone are measured, in a twentieth of the time
    Raises ModelError for a model that Dynamo cannot capture as one graph, or that has no gate; OptionError
    for settings that make no sense; ProfileError where the checkpoint cannot be written, or `curves` are of a model
    with other gates.
    """
    effort = effort_of(quick, windows, length)
    if coarse not in {None, 4, 8}:
        raise OptionError(f"coarse={coarse!r} is no width that there are kernels for; give 4 or 8 bits")
    if blocks is not None and not (type(blocks) is int and blocks > 1):
        raise OptionError(f"blocks={blocks!r} does not split an MLP; give a whole number of at least 2")
    path = None if checkpoint is None else Path(checkpoint)
    was_training = model.training
    model.eval()
    try:
        inputs = (
            text_inputs(model, tokenizer, texts, effort) if batches is None else own_inputs(list(batches))
        )
        with torch.no_grad(), _bar(progress) as bar:
            wanted = _Wanted(channels, neurons, layers, coarse, blocks)
            gated = GatedModel(model, inputs.curves[0])
            weights, name = dict(model.named_parameters()), type(model).__name__
            return _measure(gated, weights, name, inputs, effort, wanted, learned, bar, path, curves)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Wanted:
    """Which gates are measured beside channels', those after `up`, and the head's."""

    channels: bool
    neurons: bool
    layers: bool
    coarse: int | None
    blocks: int | None

    def covers(self, gate: str) -> bool:
        """Whether the gate of this id is."""
        if gate.endswith("/coarse"):  # a head has one gate or the other: the CPU backend's goes first
            return self.coarse is not None and (gate.startswith("residual:") or not self.channels)
        if gate.startswith("residual:"):
            return self.layers
        if gate.startswith("neuron:") and self.blocks is not None:
            return gate.endswith(BLOCKS)
        if not self.channels:
            return gate.startswith("vocab:") and self.coarse is None
        return not gate.endswith(BLOCKS) and (self.neurons or not gate.endswith("/neuron"))


class _Calls(Sequence[Any]):
    """Calls of the model as arguments of its graph, made when they are asked for."""

    def __init__(self, gated: GatedGraph, calls: Sequence[Any]) -> None:
        self._gated, self._calls = gated, calls

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: Any) -> Any:
        return self._gated.arguments(self._calls[index])


Bar = Callable[[int, str], None]
"""`bar(total, what)` announces that many steps; `bar(0, what)` is one step done."""


def calibrate_graph(
    gated: GatedGraph,
    weights: Mapping[str, Tensor],
    name: str,
    inputs: Inputs,
    *,
    layers: bool,
    coarse: int | None,
    blocks: int | None,
) -> Profile:
    """Measure the gates that an ONNX model can have in a graph that is captured already, quickly.

    weights: by the names that gates' places are made of
    """
    wanted = _Wanted(channels=False, neurons=False, layers=layers, coarse=coarse, blocks=blocks)
    with torch.no_grad(), _bar(show=False) as bar:
        return _measure(gated, weights, name, inputs, QUICK, wanted, {}, bar, None)


def _measure(
    gated: GatedGraph,
    weights: Mapping[str, Tensor],
    name: str,
    inputs: Inputs,
    effort: Effort,
    wanted: _Wanted,
    learned: Mapping[str, Tensor],
    bar: Bar,
    path: Path | None,
    curves: Profile | None = None,
) -> Profile:
    calls = _Calls(gated, inputs.curves)
    known = _vectors(gated, inputs, wanted) if curves is None else curves.vectors
    vectors = {**known, **learned}
    gated.insert(wanted.covers if curves is None else curves.covers, vectors)
    replay = Replay(gated.gm, gated.gates)
    names = [place.gate.id for place in replay.places]
    if curves is not None and curves.gates.keys() != set(names):
        raise ProfileError(
            f"the curves are of another model: {name} has not the places of all of their gates"
        )
    if not replay.places:
        raise ModelError(f"{name} has no place where a gate can stand: nothing to calibrate")
    settings = Settings(effort.measured, inputs.skip_first, gated.how)
    samples = fingerprint.take(weights.items())
    texts = {
        "sha256": inputs.digest,
        "tokens": inputs.tokens,
        "batches": len(inputs.curves),
        "measure": gated.how,
        "measured": list(effort.measured),
    }
    names = [place.gate.id for place in replay.places]
    if curves is not None and curves.gates.keys() != set(names):
        raise ProfileError(
            f"the curves are of another model: {name} has not the places of all of their gates"
        )
    key = digest([texts, [sample.values for sample in samples], names, dict(learned)])
    bar(steps(replay, len(calls)), "gates")

    def progress(gate: str) -> None:
        bar(0, gate)

    if curves is None:
        gates = measure_gates(replay, calls, gated.output, settings, key=key, path=path, progress=progress)
    else:
        gates = measure_thresholds(replay, calls, curves.gates, settings, progress)
        texts["curves"] = curves.digest()
    gates = {name: replace(gate, around=gated.around.get(name, "")) for name, gate in gates.items()}
    profile = _without_useless_layers(
        Profile(gates, samples, _describe(name, weights.values()), texts, vectors=vectors)
    )
    return replace(profile, joint=_joint(profile, replay, _Calls(gated, inputs.joint), gated, settings, bar))


def _vectors(gated: GatedGraph, inputs: Inputs, wanted: _Wanted) -> dict[str, Tensor]:
    """What gates need beside weights, and the basis of contexts."""
    looked_at = _Calls(gated, [*inputs.curves, *inputs.more])
    found = gate_vectors(
        gated,
        looked_at,
        neurons=wanted.neurons,
        layers=wanted.layers,
        coarse=wanted.coarse,
        blocks=wanted.blocks,
        skip_first=inputs.skip_first,
    )
    return {**found, **context_vectors(gated, looked_at)}


def _without_useless_layers(profile: Profile) -> Profile:
    """The profile without the layer gates that no plan up to `USEFUL_DRIFT` takes, and with vectors of its gates only:
    a layer gate costs a compiled graph something even where it is open.
    """
    taken = plan(profile, max_drift=USEFUL_DRIFT).fractions
    gates = {
        name: gate
        for name, gate in profile.gates.items()
        if gate.kind != "residual" or taken.get(name, 0.0) > 0
    }
    pathways = {f"{gate.kind}:{gate.place}" for gate in gates.values()} | gates.keys() | {"context"}
    held = {name: vector for name, vector in profile.vectors.items() if name.rsplit("/", 1)[0] in pathways}
    return replace(profile, gates=gates, vectors=held)


def _joint(
    profile: Profile, replay: Replay, calls: Sequence[Any], gated: GatedGraph, settings: Settings, bar: Bar
) -> tuple[Joint, ...]:
    """Drift of the controller's own plans on inputs that no curve was measured on."""
    plans = [plan(profile, max_drift=drift) for drift in JOINT_DRIFTS]
    plans = [
        each for index, each in enumerate(plans) if each.added > (plans[index - 1].added if index else 0)
    ]
    found = [Drift()] * len(plans)
    bar(max(1, len(plans) * len(calls)), "joint drift")
    for call in calls:
        reference = run_dense(replay, call, gated.output, settings)
        for index, each in enumerate(plans):
            records = each.thresholds.get("decode", {})
            found[index] += information.together(replay, call, reference, gated.output, records)
            bar(0, f"{each.added:.3f} nats")
    return tuple(Joint(each.added, drift.mean, drift.error) for each, drift in zip(plans, found, strict=True))


def _describe(name: str, weights: Iterable[Tensor]) -> dict[str, Any]:
    held = list(weights)
    return {
        "class": name,
        "parameters": sum(weight.numel() for weight in held),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in held}),
    }


@contextmanager
def _bar(show: bool) -> Iterator[Bar]:
    """A progress bar on standard error."""
    if not show:  # rich is not asked for, which a card's bench does without
        yield lambda total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("calibrating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("capturing", total=None)

        def advance(total: int, what: str) -> None:
            if total:
                bar.reset(task, total=total, description=what)
            else:
                bar.update(task, advance=1, description=what)

        yield advance
