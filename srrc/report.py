"""What a compiled model did and why: `stats` (numbers), `explain` (every pathway), `set_budget`."""

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from srrc.control.regulator import CEILING
from srrc.errors import ModelError, OptionError, SrrWarning
from srrc.options import check_budget, check_context, dense
from srrc.pathways.base import Pathway
from srrc.reasons import Reason, Refusal
from srrc.routing import NO_PROFILE
from srrc.runtime.asked_budget import ask
from srrc.runtime.compiled_graph import CompiledGraph, graphs_of
from srrc.runtime.events import Event
from srrc.runtime.gates import Gate, reset_counters
from srrc.runtime.ledger import Entry
from srrc.runtime.stream import told

_LATEST = 12
"""Events that a printed explanation ends with."""


def compiled_graphs(compiled: object) -> list[CompiledGraph]:
    """The graphs of a compiled model, in the order in which they were compiled.

    `compiled` is what `torch.compile` returned, the model itself after `model.compile(...)`, or a method of it.
    Raises ModelError where no module can be found behind it.
    """
    module = _module_behind(compiled)
    graphs = graphs_of([*module.parameters(), *module.buffers()])
    if not graphs and compiled is not module and hasattr(module, "generate"):
        message = (
            "nothing has been compiled yet. generate() on what torch.compile() returned runs the model inside, eager; "
            "use model.compile(backend='srr') and model.generate()"
        )
        warnings.warn(message, SrrWarning, stacklevel=3)
    return graphs


def stats(compiled: object, *, reset: bool = False) -> dict[str, Any]:
    """Counters of a compiled model, summed over its graphs.

    Keys: calls, flops_dense, flops_executed, bytes_dense, bytes_executed (cumulative, from the gates' counters,
    deciding included; bytes are of weights and activations), gates (id -> taken, offered, guards_failed),
    guards_failed, fallbacks (reason -> count), cache (hits, misses, evictions), drift (last, mean, samples, low and
    high of a 95% interval, predicted, bound, level: what the plan may drift by now), latency (asked: seconds of a
    call, median: of the latest calls, fraction: of the dense cost, late: whether that is out of reach; None without a
    budget in time), history (context, domains found in it, hits, misses and hit_rate of requests, evictions,
    seconds_saved: what making the plans that were found had taken), events (kind -> count).
    With `reset` the counters start anew after they are read.
    """
    graphs = compiled_graphs(compiled)
    gates = [gate for graph in graphs for gate in graph.gates]
    saved = [gate.saved for gate in gates]
    saved_flops, saved_bytes = sum(flops for flops, _ in saved), sum(size for _, size in saved)
    flops, size = sum(graph.cost.flops for graph in graphs), sum(graph.cost.bytes for graph in graphs)
    fallbacks: Counter[str] = Counter()
    for graph in graphs:
        fallbacks.update(graph.fallbacks)
    result = {
        "calls": sum(graph.calls for graph in graphs),
        "flops_dense": flops,
        "flops_executed": flops - saved_flops,
        "bytes_dense": size,
        "bytes_executed": size - saved_bytes,
        "gates": _gate_counts(gates),
        "guards_failed": sum(int(gate.counters[2]) for gate in gates),
        "fallbacks": dict(fallbacks),
        "cache": _cache_counts(graphs),
        "drift": _drift(graphs),
        "latency": _latency(graphs),
        "history": told([graph.stream for graph in graphs if graph.stream is not None]),
        "events": dict(sum((Counter(graph.events.counts()) for graph in graphs), Counter())),
    }
    if reset:
        reset_counters(gates)
        for graph in graphs:
            graph.reset()
    return result


def set_budget(compiled: object, budget: float | str) -> None:
    """Move a compiled model to another budget, a fraction of its dense cost in (0, 1] or a time. Recompiles nothing.

    Graphs that are compiled later, when the model is first called or called in a new way, follow it too.
    Raises OptionError for a budget out of range, and for a model that is not compiled, or without a profile;
    ModelError where no module can be found behind `compiled`.
    """
    value = check_budget(budget)
    if value is None:
        raise OptionError("budget=None; give a fraction of the dense cost in (0, 1]")
    module = _module_behind(compiled)
    held = [*module.parameters(), *module.buffers()]
    graphs = graphs_of(held)
    if not graphs and compiled is module and module._compiled_call_impl is None:  # noqa: SLF001
        raise OptionError(
            "this model is not compiled; call model.compile(backend='srr', options={...}) first"
        )
    gated = [graph for graph in graphs if graph.replan is not None]
    if graphs and not gated and not dense(value) and all(graph.options.profile is None for graph in graphs):
        raise OptionError(NO_PROFILE)
    ask(held, value, graphs[-1].options if graphs else None)
    for graph in gated:
        assert graph.replan is not None
        graph.follow(graph.replan(value))


def set_context(compiled: object, context: str) -> None:
    """Name what the next texts belong to, a user or a domain: what is learned on them stays apart from other names'.

    Recompiles nothing. "" is the context of a model that was given none.
    Raises OptionError for what is no string, and for a model that has not run yet with a profile.
    """
    name = check_context(context)
    streams = [graph.stream for graph in compiled_graphs(compiled) if graph.stream is not None]
    if not streams:
        raise OptionError("set_context needs a model that ran once, compiled with options={'profile': ...}")
    for stream in streams:
        if stream.context != name:
            stream.enter(name)


@dataclass(frozen=True)
class Row:
    """One pathway of one graph. cost: FLOPs of a call, symbolic; decision: the gate's state, or why there is none."""

    graph: int
    kind: str
    place: str
    units: int
    flops: str
    bytes: str
    relevance_per_cost: float | None
    decision: str


@dataclass(frozen=True)
class Explanation:
    """`rows`, the sampled `ledger` and what changed, `events`, for programs; printing it gives a table, with a summary
    of the graphs and the latest events below.
    """

    rows: tuple[Row, ...]
    graphs: tuple[str, ...]
    ledger: tuple[Entry, ...] = ()
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{len(self.rows)} pathways")
        for name in ("graph", "kind", "place", "units", "FLOPs", "bytes", "SR", "decision"):
            table.add_column(name, overflow="fold")
        for row in self.rows:
            relevance = "" if row.relevance_per_cost is None else f"{row.relevance_per_cost:.2e}"
            cells = (row.graph, row.kind, row.place, row.units, row.flops, row.bytes, relevance, row.decision)
            table.add_row(*map(str, cells))
        text = io.StringIO()
        console = Console(file=text, width=180)
        console.print(table)
        for line in self.graphs:
            console.print(line, highlight=False)
        for event in self.events[-_LATEST:]:
            console.print(str(event), highlight=False)
        return text.getvalue()


def explain(compiled: object) -> Explanation:
    """Every pathway of every graph compiled so far: kind, place, cost, relevance per cost, decision and why."""
    graphs = compiled_graphs(compiled)
    rows = [row for index, graph in enumerate(graphs) for row in _rows(index, graph)]
    summaries = tuple(_summary(index, graph) for index, graph in enumerate(graphs))
    ledger = tuple(entry for graph in graphs for entry in graph.ledger.entries())
    events = tuple(event for graph in graphs for event in graph.events.all())
    return Explanation(tuple(rows), summaries, ledger, events)


def _rows(index: int, graph: CompiledGraph) -> Iterable[Row]:
    gates: dict[tuple[str, str], list[Gate]] = {}
    for gate in graph.gates:
        kind, place = gate.id.split(":", 1)
        gates.setdefault((kind, place.rsplit("/", 1)[0]), []).append(gate)
    refused = {(refusal.kind, refusal.place): refusal for refusal in graph.refusals}
    seen = set()
    for pathway in graph.pathways:
        key = (str(pathway.kind), pathway.place)
        seen.add(key)
        reverted = frozenset() if graph.plan is None else graph.plan.reverted
        decision = _decision(gates.get(key, []), refused.get(key), reverted)
        yield _row(index, graph, pathway, decision)
    for key, refusal in refused.items():
        if key not in seen:
            yield Row(index, refusal.kind, refusal.place, 0, "", "", None, _why(refusal))


def _row(index: int, graph: CompiledGraph, pathway: Pathway, decision: str) -> Row:
    relevance = None if graph.plan is None else graph.plan.relevance.get(f"{pathway.kind}:{pathway.place}")
    flops, size = str(pathway.cost.flops), str(pathway.cost.bytes)
    return Row(index, pathway.kind, pathway.place, pathway.units, flops, size, relevance, decision)


def _decision(gates: Sequence[Gate], refusal: Refusal | None, reverted: frozenset[str]) -> str:
    if not gates:
        return "dense" if refusal is None else _why(refusal)
    return "; ".join(_gate_state(gate, reverted) for gate in gates)


def _gate_state(gate: Gate, reverted: frozenset[str]) -> str:
    part = gate.id.rsplit("/", 1)[1] + " " if "/" in gate.id else ""
    threshold = float(gate.record[0])
    offered = int(gate.counters[0])
    if threshold < 0:
        return f"{part}open" + (f": {Reason.MEASURED_SLOWER.value}" if gate.id in reverted else "")
    kept = f", {1 - _skipped(gate) / offered:.0%} kept of {offered}" if offered else ""
    return f"{part}gated over {threshold:.3g}{kept}"


def _why(refusal: Refusal) -> str:
    return f"dense: {refusal.reason.value}" + (f" ({refusal.detail})" if refusal.detail else "")


def _summary(index: int, graph: CompiledGraph) -> str:
    total, different = graph.regions
    gates = f"{len(graph.gates)} gates" if graph.gates else "no gates"
    return f"graph {index}: {total} regions, {different} different, {gates}, {graph.calls} calls"


def _skipped(gate: Gate) -> int:
    return int(gate.counters[0]) - int(gate.counters[1])


def _gate_counts(gates: Iterable[Gate]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for gate in gates:
        entry = counts.setdefault(gate.id, {"taken": 0, "offered": 0, "guards_failed": 0})
        entry["offered"] += int(gate.counters[0])
        entry["taken"] += int(gate.counters[1])
        entry["guards_failed"] += int(gate.counters[2])
    return counts


def _cache_counts(graphs: Iterable[CompiledGraph]) -> dict[str, int]:
    counts = {"hits": 0, "misses": 0, "evictions": 0}
    for graph in graphs:
        for name in counts:
            counts[name] += getattr(graph.cache, name)
    return counts


def _drift(graphs: Sequence[CompiledGraph]) -> dict[str, float | int | None]:
    measured = [graph for graph in graphs if graph.drift.samples]
    samples = sum(graph.drift.samples for graph in measured)
    bounds = [graph.drift.bounds(_ceiling(graph)) for graph in measured]
    regulators = [graph.adaptation.regulator for graph in graphs if graph.adaptation is not None]
    levels = [regulator.level for regulator in regulators if regulator is not None]
    return {
        "last": measured[-1].drift.last if measured else None,
        "mean": sum(graph.drift.total for graph in measured) / samples if samples else None,
        "samples": samples,
        "low": max((bound.low for bound in bounds), default=None),
        "high": max((bound.high for bound in bounds), default=None),
        "predicted": max((graph.plan.drift for graph in graphs if graph.plan is not None), default=None),
        "bound": min((g.options.max_drift for g in graphs if g.options.max_drift is not None), default=None),
        "level": max(levels, default=None),
    }


def _latency(graphs: Sequence[CompiledGraph]) -> dict[str, float | bool | None] | None:
    """Of the graph that was compiled last of those that keep a time."""
    paces = [graph.adaptation.pace for graph in graphs if graph.adaptation is not None]
    pace = next((pace for pace in reversed(paces) if pace is not None), None)
    if pace is None:
        return None
    return {"asked": pace.target, "median": pace.median, "fraction": pace.fraction, "late": pace.late}


def _ceiling(graph: CompiledGraph) -> float:
    """The drift that larger ones count as, in confidence bounds."""
    bound = graph.options.max_drift or (graph.plan.drift if graph.plan is not None else 0.0)
    return CEILING * bound if bound > 0 else 1.0


def _module_behind(compiled: object) -> torch.nn.Module:
    for candidate in (compiled, getattr(compiled, "_torchdynamo_orig_callable", None)):
        owner = candidate if isinstance(candidate, torch.nn.Module) else getattr(candidate, "__self__", None)
        if isinstance(owner, torch.nn.Module):
            module: torch.nn.Module = getattr(owner, "_orig_mod", owner)
            return module
    raise ModelError(
        f"no torch.nn.Module behind {compiled!r}; pass the model or what torch.compile() returned"
    )
