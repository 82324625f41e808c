"""One compiled graph of a model, as it lives from call to call, and the record of all of them."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from srrc.options import Options
from srrc.pathways.base import Pathway
from srrc.reasons import Refusal
from srrc.runtime.costs import GraphCost
from srrc.runtime.gates import Gate


@dataclass(eq=False)
class CompiledGraph:
    """What `stats`, `explain` and `set_budget` read of a compiled graph.

    options:    as the user gave them
    parameters: weak references to the parameters and buffers the graph was compiled for
    pathways:   what was found in it; `refusals`: what was turned down, or runs dense, and why
    gates:      the gates in it, in graph order
    cost:       the dense cost, summed over the calls
    regions:    how many regions it runs, and how many different ones were compiled for that
    source:     the driver's code
    plan:       the plan its gates follow, None where it has no gates
    """

    options: Options
    parameters: Sequence["weakref.ref[torch.Tensor]"]
    pathways: Sequence[Pathway] = ()
    refusals: list[Refusal] = field(default_factory=list)
    gates: Sequence[Gate] = ()
    cost: GraphCost = field(default_factory=GraphCost)
    regions: tuple[int, int] = (0, 0)
    fallbacks: Counter[str] = field(default_factory=Counter)
    source: str = ""
    plan: Any = None
    calls: int = 0


_graphs: "weakref.WeakSet[CompiledGraph]" = weakref.WeakSet()
_lock = threading.Lock()


def record(graph: CompiledGraph) -> None:
    """Remember `graph` for as long as something can still call it."""
    with _lock:
        _graphs.add(graph)


def graphs_of(parameters: Iterable[torch.Tensor]) -> list[CompiledGraph]:
    """The living graphs that were compiled for any of these tensors, in no particular order."""
    wanted = {id(parameter) for parameter in parameters}
    with _lock:
        alive = list(_graphs)
    return [graph for graph in alive if any(id(reference()) in wanted for reference in graph.parameters)]


def callable_of(graph: CompiledGraph, run: Callable[..., Any], symbol_positions: Sequence[int]) -> Callable[..., Any]:
    """What Dynamo calls: counts the call, then runs the driver below autograd.

    The driver holds no gradients (graphs that need them are not compiled this way), and below autograd each op
    goes straight to its kernel. `symbol_positions` are the arguments that hold the cost's symbols.
    """

    def call(*args: Any) -> Any:
        graph.calls += 1
        graph.cost.add([args[position] for position in symbol_positions])
        with torch._C._AutoDispatchBelowAutograd():
            return run(*args)

    return call
