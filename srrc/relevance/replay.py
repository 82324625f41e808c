"""Runs a gated graph step by step, and any suffix of it again with one gate closed, from values kept alive.

An intervention on a gate changes nothing before it, so only the nodes from there on are run again; what they
need is just what a normal run still holds at that point.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from srrc.errors import ModelError
from srrc.pathways.effects import written_arguments
from srrc.relevance import scores

OPEN = (-1.0, 0.0)
"""The record that keeps everything (srrc.ops.gate)."""


class GateLike(Protocol):
    """What calibration needs to know of a gate in a graph (`srrc.runtime.gates.Gate`)."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def record(self) -> Tensor: ...  # noqa: D102
    @property
    def flops(self) -> float: ...  # noqa: D102
    @property
    def bytes(self) -> float: ...  # noqa: D102
    @property
    def overhead(self) -> float: ...  # noqa: D102
    @property
    def fixed_flops(self) -> float: ...  # noqa: D102
    @property
    def fixed_bytes(self) -> float: ...  # noqa: D102
    @property
    def spared_bytes(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Place:
    """Where a gate stands: the index of its node in the graph, and its row of the node's records."""

    gate: GateLike
    index: int
    row: int


Values = dict[fx.Node, Any]
"""The values that are alive at some point of a run."""


class Replay:
    """A gated graph that can be run from any node on.

    gm:    the graph; its gates' records are buffers of it, which `closed` writes to
    gates: those of its gates that matter here
    Raises ModelError where the graph writes to a value of its own: then no part of it can be run twice.
    """

    def __init__(self, gm: fx.GraphModule, gates: Sequence[GateLike]) -> None:
        self.nodes: list[fx.Node] = list(gm.graph.nodes)
        self._interpreter = fx.Interpreter(gm, garbage_collect_values=False)
        self._dead = _last_uses(self.nodes)
        for node in self.nodes:
            if scores.records_argument(node) is None and any(written_arguments(node)):
                raise ModelError(
                    f"cannot calibrate: the graph writes to its own values (at {node.name}); "
                    "run the model without a cache"
                )
        self.places = _places(gm, self.nodes, gates)

    def begin(self, arguments: Sequence[Any]) -> Values:
        """Values of the graph's placeholders, in order."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        return dict(zip(inputs, arguments, strict=True))

    def advance(self, values: Values, start: int, stop: int) -> None:
        """Run nodes[start:stop], adding to `values` what they give and dropping what nothing will read
        again.
        """
        self._interpreter.env = values
        with torch.no_grad():
            for node in self.nodes[start:stop]:
                if node.op != "placeholder":
                    values[node] = self._interpreter.run_node(node)
                for dead in self._dead[node]:
                    values.pop(dead, None)

    def finish(self, values: Values, start: int) -> Any:
        """The graph's output, from nodes[start:] run on a copy of `values`."""
        copy = dict(values)
        self.advance(copy, start, len(self.nodes))
        return copy[self.nodes[-1]]

    def arguments(self, values: Values, index: int) -> dict[str, Any]:
        """What the gated op at nodes[index] is about to be called with, by the schema's names."""
        self._interpreter.env = values
        node = self.nodes[index]
        args, kwargs = self._interpreter.fetch_args_kwargs_from_env(node)
        names = list(scores.named_arguments(node))
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def call(self, values: Values, index: int) -> Any:
        """What nodes[index] gives on `values`, which stay as they are."""
        self._interpreter.env = values
        with torch.no_grad():
            return self._interpreter.run_node(self.nodes[index])


@contextmanager
def closed(records: Mapping[str, tuple[float, float]], gates: Sequence[GateLike]) -> Iterator[None]:
    """Within it, gates hold `records`, (threshold, min_kept) by id; those that it does not name are open."""
    for gate in gates:
        gate.record.copy_(torch.tensor(records.get(gate.id, OPEN), dtype=torch.float32))
    try:
        yield
    finally:
        for gate in gates:
            gate.record.copy_(torch.tensor(OPEN, dtype=torch.float32))


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    seen: set[fx.Node] = set()
    dead: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(nodes):
        dead[node] = []
        for read in node.all_input_nodes:
            if read not in seen:
                seen.add(read)
                dead[node].append(read)
        if not node.users and node.op != "output":
            dead[node].append(node)
    return dead


def _places(gm: fx.GraphModule, nodes: Sequence[fx.Node], gates: Sequence[GateLike]) -> list[Place]:
    """Where each gate stands, in graph order: found by the memory of its record."""
    by_memory = {gate.record.data_ptr(): gate for gate in gates}
    found = []
    for index, node in enumerate(nodes):
        name = scores.records_argument(node)
        if name is None:
            continue
        holder = scores.named_arguments(node)[name]
        records: Tensor = getattr(gm, str(holder.target))
        for row, record in enumerate(records.view(-1, 2)):
            gate = by_memory.get(record.data_ptr())
            if gate is not None:
                found.append(Place(gate, index, row))
    return found
