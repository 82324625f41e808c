"""Ties a compiled graph to its profile: what may be gated, which plan the gates follow, when they are not trusted."""

import functools
import hashlib
import platform
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from srrc import __version__
from srrc.control.plan import Plan
from srrc.errors import OptionError, ProfileError, SrrWarning
from srrc.fuel import fuel
from srrc.options import Budget, Options
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile
from srrc.reasons import Reason, Refusal
from srrc.runtime.adaptation import Adaptation
from srrc.runtime.asked_budget import asked_budget
from srrc.runtime.compiled_graph import CompiledGraph
from srrc.runtime.fallback import fall_back
from srrc.runtime.feedback import answer, drift_between
from srrc.runtime.gates import Gate, read, set_records
from srrc.runtime.histories import stream_of
from srrc.runtime.stream import FEW
from srrc.runtime.watch import WeightWatch

NO_ROOM = "feedback is off from now on: the card has no room for a dense answer beside the routed one"

NO_PROFILE = "this model was compiled without a profile; compile it with options={'profile': ...}"


def profile_of(options: Options) -> Profile | None:
    """The profile that the options name, read once per file. Raises ProfileError where it cannot be read."""
    given = options.profile
    if isinstance(given, Path):
        try:
            changed = given.stat().st_mtime_ns
        except OSError:
            changed = 0  # reading it says what is wrong
        return _load(given, changed)
    if given is None or isinstance(given, Profile):
        return given
    raise OptionError(f"profile={given!r} is neither a srrc.Profile nor a path of one")


def gate_source(
    profile: Profile, names: Mapping[str, str], weights: Mapping[str, torch.Tensor]
) -> GateSource:
    """What gates are made from. names, weights: by placeholder. Raises ProfileError for a profile of other weights."""
    profile.check({names[placeholder]: weight for placeholder, weight in weights.items()})
    device = next((weight.device for weight in weights.values()), torch.device("cpu"))
    return GateSource(profile.covers, weights, _vectors_on(profile, device), fuel=fuel())


def _vectors_on(profile: Profile, device: torch.device) -> Mapping[str, torch.Tensor]:
    """A profile's vectors where the model is, but for numbers; moved once, so that a model's graphs share them."""
    if device.type == "cpu":
        return profile.vectors
    moved = _moved.setdefault(profile, {})
    if device not in moved:
        of = profile.vectors.items()
        moved[device] = {name: vector.to(device) if vector.dim() else vector for name, vector in of}
    return moved[device]


_moved: "weakref.WeakKeyDictionary[Profile, dict[torch.device, Mapping[str, torch.Tensor]]]" = (
    weakref.WeakKeyDictionary()
)


def route(graph: CompiledGraph, profile: Profile, tokens: tuple[int, int] | None) -> None:
    """Give `graph` the plan for its options, and the means to make another.

    tokens: positions among its arguments of token ids and of their embeddings
    """
    options, asked = graph.options, budget_of(graph)
    feedback = 0.0 if graph.output is None else options.feedback
    stream = graph.stream = stream_of(_alive(graph), options, profile)
    graph.tokens = tokens
    graph.adaptation = Adaptation(
        _key(graph),
        stream.learned,
        profile,
        options.max_drift,
        feedback,
        lambda: graph.times,
        graph.events,
        seed=graph.serial,
        lock=stream.history.lock,
    )
    graph.replan = graph.adaptation.plan
    graph.follow(graph.replan(options.budget if asked is None else asked))


def listen(
    graph: CompiledGraph, profile: Profile, tokens: tuple[int, int] | None, run: Callable[..., Any]
) -> Callable[..., Any]:
    """What Dynamo calls of a graph without gates: it looks at the texts, for the model's other graphs."""
    if tokens is None:
        return run
    stream = graph.stream = stream_of(_alive(graph), graph.options, profile)
    ids_at, table_at = tokens

    def call(*args: Any) -> Any:
        if not _is_being_captured(args[ids_at]) and stream.saw(args[ids_at], args[table_at]):
            stream.keep()
        return run(*args)

    return call


def _is_being_captured(tensor: torch.Tensor) -> bool:
    """Whether a call goes into a CUDA graph of the user's own: then nothing may wait for the card."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _follow(graph: CompiledGraph, plan: Plan | None) -> None:
    """Let the gates follow another plan, if there is one."""
    if plan is not None:
        graph.follow(plan)


def budget_of(graph: CompiledGraph) -> Budget | None:
    """The budget that `set_budget` asked for before `graph` was compiled; None where it did not."""
    return asked_budget(_alive(graph), graph.options)


def _alive(graph: CompiledGraph) -> list[torch.Tensor]:
    return [tensor for tensor in (reference() for reference in graph.parameters) if tensor is not None]


def _key(graph: CompiledGraph) -> str:
    """What plans of the graph are kept under: its gates, and the machine that timed them."""
    gates = sorted((gate.id, gate.phase, gate.rows) for gate in graph.gates)
    described = [__version__, platform.node(), torch.get_num_threads(), gates]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def guard_weights(
    graph: CompiledGraph, profile: Profile, positions: Mapping[str, int], weights: Mapping[str, torch.Tensor]
) -> Callable[[Sequence[Any]], None]:
    """A check of each call's arguments: gates stay open for good once the weights are not the profile's any more.

    positions, weights: by name in the model, where each stands among the arguments, and what it is now. Those that the
    profile knows are watched, since buffers may change on every call. An edit that leaves the profile fitting (the same
    weights loaded again) changes nothing.
    """
    known = {sample.name for sample in profile.samples}
    watch = WeightWatch({name: at for name, at in positions.items() if name in known}, weights)

    def check(arguments: Sequence[Any]) -> None:
        changed = watch.changed(arguments)
        if changed is None or graph.stale:
            return
        try:
            profile.check(changed)
        except ProfileError as error:
            graph.stale = True
            set_records(graph.gates, {})
            fall_back(graph, Refusal("every gate", "graph", Reason.STALE_PROFILE, str(error)))

    return check


def watched(
    graph: CompiledGraph,
    run: Callable[..., Any],
    check: Callable[[Sequence[Any]], None],
    parameters: set[int],
) -> Callable[..., Any]:
    """What Dynamo calls of a gated graph: the weights are checked each time, ledger and feedback on some calls.

    parameters: ids of the tensors that `run` does not write to
    """
    adaptation, stream, output = graph.adaptation, graph.stream, graph.output
    assert adaptation is not None
    assert stream is not None
    reads, (ids_at, table_at) = graph.tokens is not None, graph.tokens or (0, 0)
    card = next((gate.record.device for gate in graph.gates if gate.record.is_cuda), None)
    settle: Callable[[], None] = (
        (lambda: None) if card is None else functools.partial(torch.cuda.synchronize, card)
    )

    def call(*args: Any) -> Any:
        if _is_being_captured(graph.gates[0].record):
            return run(*args)
        check(args)
        if reads and stream.saw(args[ids_at], args[table_at]):
            stream.keep()
        if stream.learned is not adaptation.learned:
            _follow(graph, adaptation.enter(stream.learned))
        number = graph.calls + 1
        measure = output is not None and not graph.stale and adaptation.due()
        if not graph.ledger.due(number) and not measure:
            if adaptation.pace is None or (reads and args[ids_at].shape[-1] >= FEW):
                return run(*args)
            settle()
            started = perf_counter()
            routed = run(*args)
            settle()
            _follow(graph, adaptation.took(number, perf_counter() - started))
            return routed
        compare: Callable[[Any], None] | None = None
        if measure:
            with _room_or_no_feedback(adaptation):
                compare = _dense_first(graph, adaptation, run, args, parameters, number)
        gates = graph.gates  # more join them where this call compiles another specialisation
        before = graph.ledger.before(gates)
        routed = run(*args)
        relevance = {} if graph.plan is None else graph.plan.relevance
        graph.ledger.after(number, gates, before, relevance)
        if compare is not None and _at_work(gates, before):
            with _room_or_no_feedback(adaptation):
                compare(routed)
            stream.keep()
        return routed

    return call


@contextmanager
def _room_or_no_feedback(adaptation: Adaptation) -> Iterator[None]:
    """A card that is full of a user's caches has no room to measure in: then the call goes on without."""
    try:
        yield
    except torch.OutOfMemoryError:
        adaptation.stop_measuring()
        warnings.warn(NO_ROOM, SrrWarning, stacklevel=2)


def _at_work(gates: Sequence[Gate], before: Sequence[Sequence[float]]) -> bool:
    """Whether a call asked any gate that is closed, or none is. One that did not, prefill, says nothing of them."""
    records, counted = read([gate.record for gate in gates]), read([gate.counters for gate in gates])
    closed = [at for at, (threshold, _) in enumerate(records) if threshold >= 0]
    return not closed or any(counted[at][0] > before[at][0] for at in closed)


def _dense_first(
    graph: CompiledGraph,
    adaptation: Adaptation,
    run: Callable[..., Any],
    args: Sequence[Any],
    parameters: set[int],
    number: int,
) -> Callable[[Any], None]:
    """Compute the dense answer to a call that is about to run. Returns what to do with the routed one.

    On some calls one gate alone is tried as well.
    """
    plan = graph.plan
    assert plan is not None
    assert graph.output is not None
    index, logits = graph.output

    def moved(drift: float) -> None:
        graph.drift.add(drift)
        _follow(graph, adaptation.measured(number, drift))

    if not plan.fractions:  # every gate is open: the routed answer is the dense one
        return lambda routed: moved(0.0)
    in_place = graph.options.cuda_graphs and graph.gates[0].record.is_cuda
    given = functools.partial(answer, run, args, graph.gates, parameters, index, in_place=in_place)
    dense, trial = given(), adaptation.trial(plan)
    if trial is not None:
        alone = given({trial.gate: trial.record})
        learned = adaptation.explored(number, trial, drift_between(dense, alone, logits=logits))
        _follow(graph, learned)
    # Where a new plan was made just now, the call about to run follows it already.
    return lambda routed: moved(drift_between(dense, routed[index], logits=logits))


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Profile:
    return Profile.load(path)
