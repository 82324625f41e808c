"""One compiled graph of a model, as it lives from call to call, and the record of all of them."""

import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from srrc.control.gate_time import GateTime
from srrc.control.plan import Plan
from srrc.options import Budget, Options
from srrc.pathways.base import Pathway
from srrc.reasons import Refusal
from srrc.runtime.adaptation import Adaptation
from srrc.runtime.costs import GraphCost
from srrc.runtime.events import Events
from srrc.runtime.feedback import Drift
from srrc.runtime.gates import Gate, set_records
from srrc.runtime.ledger import Ledger
from srrc.runtime.specialisations import Specialisations
from srrc.runtime.stream import Stream


@dataclass(eq=False)
class CompiledGraph:
    """What `stats`, `explain` and `set_budget` read of a compiled graph.

    options:    as the user gave them
    parameters: weak references to the parameters and buffers the graph was compiled for
    serial:     its place in the order of compilation
    pathways:   what was found in it; `refusals`: what was turned down, or runs dense, and why
    gates:      the gates in it, in graph order
    cost:       the dense cost, summed over the calls
    regions:    how many regions it runs, and how many different ones were compiled for that
    source:     the driver's code
    cache:      its specialisations
    plan:       the plan its gates follow, None where it has no gates; `replan(budget)` makes another
    output:     position of the output whose drift counts, and whether it is logits; None where there is none
    drift, ledger: what feedback measured, and what the gates decided, on sampled calls
    adaptation: how the plan follows what is measured, None where it has no gates; `events`: what changed, for people
    stream:     the texts that pass through its model, None where it has no gates; `tokens`: positions of the arguments
                that hold token ids and their embeddings
    times:      gate id -> what it takes and saves on this machine
    stale:      whether the weights have left the profile behind: the gates are open then, and stay so
    """

    options: Options
    parameters: Sequence["weakref.ref[torch.Tensor]"]
    serial: int = field(default_factory=itertools.count().__next__)
    pathways: Sequence[Pathway] = ()
    refusals: list[Refusal] = field(default_factory=list)
    gates: Sequence[Gate] = ()
    cost: GraphCost = field(default_factory=GraphCost)
    regions: tuple[int, int] = (0, 0)
    fallbacks: Counter[str] = field(default_factory=Counter)
    source: str = ""
    cache: Specialisations = field(default_factory=Specialisations)
    plan: Plan | None = None
    replan: Callable[[Budget | None], Plan] | None = None
    stale: bool = False
    output: tuple[int, bool] | None = None
    drift: Drift = field(default_factory=Drift)
    adaptation: Adaptation | None = None
    stream: Stream | None = None
    tokens: tuple[int, int] | None = None
    events: Events = field(default_factory=Events)
    ledger: Ledger = field(default_factory=Ledger)
    times: Mapping[str, GateTime] = field(default_factory=dict)
    calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_gates(self, gates: Iterable[Gate]) -> None:
        """Take in the gates of one more specialisation; those it shares with another are there already."""
        known = {(gate.id, gate.phase) for gate in self.gates}
        fresh = [gate for gate in gates if (gate.id, gate.phase) not in known]
        self.gates = [*self.gates, *fresh]
        if self.plan is not None and not self.stale:
            set_records(fresh, self.plan.thresholds)

    def follow(self, plan: Plan) -> None:
        """Let the gates follow `plan` from now on; those of a stale graph stay open."""
        self.plan = plan
        set_records(self.gates, {} if self.stale else plan.thresholds)

    def count(self, sizes: Sequence[int]) -> None:
        """Count one call with these values of the cost's symbols."""
        with self.lock:
            self.calls += 1
            self.cost.add(sizes)

    def reset(self) -> None:
        """Start counting anew."""
        with self.lock:
            self.calls = 0
            self.cost.flops = self.cost.bytes = 0.0
            self.fallbacks.clear()
            self.cache.reset_counts()
            self.drift = Drift()
            self.events.reset()
            if self.stream is not None:
                self.stream.history.reset_counts()


_graphs: "weakref.WeakSet[CompiledGraph]" = weakref.WeakSet()
_lock = threading.Lock()


def record(graph: CompiledGraph) -> None:
    """Remember `graph` for as long as something can still call it."""
    with _lock:
        _graphs.add(graph)


def forget(graph: CompiledGraph) -> None:
    """Of a graph whose compilation Dynamo begins anew nothing is told."""
    with _lock:
        _graphs.discard(graph)


def graphs_of(parameters: Iterable[torch.Tensor]) -> list[CompiledGraph]:
    """The living graphs that were compiled for any of these tensors, in order of compilation."""
    wanted = {id(parameter) for parameter in parameters}
    with _lock:
        alive = list(_graphs)
    found = [graph for graph in alive if any(id(reference()) in wanted for reference in graph.parameters)]
    return sorted(found, key=lambda graph: graph.serial)
