"""A read-only view of one FX graph that every finder shares: parameter names, shapes, order, dominators."""

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import networkx as nx
import sympy
import torch
from torch import fx

from srrc.pathways.effects import Storage
from srrc.pathways.patterns import is_contraction

SINK = "sink"
"""Stands after everything in `flow`, so that post-dominators have one root."""


def size(value: object) -> sympy.Expr:
    """One dimension as a sympy expression: a number, or the SymInt's own over the graph's symbols."""
    if isinstance(value, torch.SymInt):
        # The length of a nested tensor is a symbol of another kind, without an expression.
        return getattr(value.node, "expr", None) or sympy.Symbol(str(value), integer=True, positive=True)
    return sympy.Integer(int(value))  # type: ignore[call-overload]


class GraphView:
    """`graph` with what the finders ask about it, computed once.

    fqns: placeholder name -> fully qualified parameter or buffer name.
    The view holds no copy: a pass that edits the graph makes a new one.
    """

    def __init__(self, graph: fx.Graph, fqns: Mapping[str, str]) -> None:
        self.graph = graph
        self.fqns = fqns
        self.nodes: tuple[fx.Node, ...] = tuple(graph.nodes)
        self.order: dict[fx.Node, int] = {node: index for index, node in enumerate(self.nodes)}
        self.output: fx.Node = self.nodes[-1]

    # What a node holds.

    def is_parameter(self, node: object) -> bool:
        """Whether `node` holds a parameter or buffer of the model that the graph does not write to."""
        if not isinstance(node, fx.Node) or node.op not in {"placeholder", "get_attr"}:
            return False
        return node.name in self.fqns and not self.storage.is_written(node)

    def fqn(self, node: fx.Node) -> str:
        """The parameter's fully qualified name. Raises KeyError for a node that holds none."""
        return self.fqns[node.name]

    def tensor(self, node: object) -> torch.Tensor | None:
        """The fake tensor that `node` computes, or None where it computes something else."""
        value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        return value if isinstance(value, torch.Tensor) else None

    def shape(self, node: object) -> tuple[sympy.Expr, ...]:
        """The shape over the graph's symbols. Raises ValueError for a node that computes no tensor."""
        tensor = self.tensor(node)
        if tensor is None:
            raise ValueError(f"{node} computes no tensor")
        return tuple(size(extent) for extent in tensor.shape)

    def numel(self, node: fx.Node) -> sympy.Expr:
        """Number of elements over the graph's symbols."""
        return functools.reduce(operator.mul, self.shape(node), sympy.Integer(1))

    def nbytes(self, node: fx.Node) -> sympy.Expr:
        """Bytes of the value over the graph's symbols, as if it were stored once and densely."""
        tensor = self.tensor(node)
        return self.numel(node) * (tensor.element_size() if tensor is not None else 0)

    def rows(self, node: fx.Node) -> sympy.Expr:
        """Product of all dimensions but the last: how many vectors a linear sees."""
        return functools.reduce(operator.mul, self.shape(node)[:-1], sympy.Integer(1))

    def is_contiguous(self, node: object) -> bool:
        """Whether the value is known to be dense and row-major, for every value of the symbols."""
        tensor = self.tensor(node)
        if tensor is None or tensor.layout is not torch.strided:
            return False
        expected = sympy.Integer(1)
        for extent, stride in zip(reversed(self.shape(node)), reversed(tensor.stride()), strict=True):
            if extent != 1 and sympy.expand(size(stride) - expected) != 0:
                return False
            expected *= extent
        return True

    # Sets of nodes.

    def in_order(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """Each node once, in graph order."""
        return tuple(sorted(set(nodes), key=self.order.__getitem__))

    @functools.cached_property
    def constants(self) -> set[fx.Node]:
        """Values computed from parameters alone (`W.t()`, `1 + w`), parameters themselves included."""
        constants: set[fx.Node] = set()
        for node in self.nodes:
            sources = self.sources[node]
            if self.is_parameter(node) or (
                sources and constants.issuperset(sources) and node is not self.output
            ):
                constants.add(node)
        return constants

    def parameter_nodes(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """The parameters that `nodes` read, in the order they are read."""
        read = (a for node in self.in_order(nodes) for a in node.all_input_nodes)
        return tuple(dict.fromkeys(a for a in read if self.is_parameter(a)))

    def parameters_of(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        """Fully qualified names of the parameters that `nodes` read, in the order they are read."""
        return tuple(self.fqn(node) for node in self.parameter_nodes(nodes))

    def inputs_of(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """What `nodes` read from outside themselves, parameters excepted, in graph order."""
        inside = set(nodes)
        outside = {
            a for n in inside for a in n.all_input_nodes if a not in inside and not self.is_parameter(a)
        }
        return self.in_order(outside)

    # How values flow.

    @functools.cached_property
    def storage(self) -> Storage:
        """Which values share storage, and who writes to it."""
        return Storage(self.nodes)

    def written_between(self, value: fx.Node, first: fx.Node, last: fx.Node) -> fx.Node | None:
        """The first node after `first` and before `last` that may write to the storage of `value`."""
        writers = self.storage.writers.get(self.storage.root(value), ())
        return next((w for w in writers if self.order[first] < self.order[w] < self.order[last]), None)

    @functools.cached_property
    def sources(self) -> dict[fx.Node, list[fx.Node]]:
        """What each node's value depends on: its arguments, and whatever wrote to their storage before it."""
        written: dict[fx.Node, fx.Node] = {}
        sources: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            roots = dict.fromkeys(self.storage.root(a) for a in node.all_input_nodes)
            writers = [written[root] for root in roots if root in written]
            sources[node] = list(dict.fromkeys([*node.all_input_nodes, *writers]))
            for root in roots:
                if node in self.storage.writers.get(root, ()):
                    written[root] = node
        return sources

    @functools.cached_property
    def _ancestors(self) -> dict[fx.Node, int]:
        """Each node's ancestors, itself included, as a bit set over `order`."""
        ancestors: dict[fx.Node, int] = {}
        for node in self.nodes:
            bits = 1 << self.order[node]
            for source in self.sources[node]:
                bits |= ancestors[source]
            ancestors[node] = bits
        return ancestors

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether the value of `node` depends on `source` (a node depends on itself)."""
        return bool(self._ancestors[node] >> self.order[source] & 1)

    @functools.cached_property
    def _main(self) -> set[fx.Node]:
        """The contractions and all that they depend on; the rest only leads out of the graph."""
        main: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in main or is_contraction(node):
                main.update([node, *self.sources[node]])
        return main

    @functools.cached_property
    def flow(self) -> "nx.DiGraph[fx.Node | str]":
        """Value flow, writes to storage included, with `SINK` after all that nobody reads.

        Where a value goes on into the computation, the ways on which it is only handed out (into a cache, as
        hidden states) are left out: they are bookkeeping, and would hide every branch behind them.
        """
        flow: nx.DiGraph[fx.Node | str] = nx.DiGraph()
        flow.add_node(SINK)
        flow.add_nodes_from(self.nodes)
        readers: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in self.sources[node]:
                readers[source].append(node)
        for source, nodes in readers.items():
            inner = [node for node in nodes if node in self._main]
            targets: list[fx.Node | str] = [*(inner or nodes)]
            flow.add_edges_from((source, target) for target in targets or [SINK])
        return flow

    @functools.cached_property
    def _post_dominator_tree(self) -> dict[fx.Node | str, tuple[int, int]]:
        """Entry and exit times of each node in a walk over the post-dominator tree."""
        parents = nx.immediate_dominators(self.flow.reverse(copy=False), SINK)
        children: dict[fx.Node | str, list[fx.Node | str]] = {}
        for node, parent in parents.items():
            if parent != node:
                children.setdefault(parent, []).append(node)
        times: dict[fx.Node | str, tuple[int, int]] = {}
        clock, root = 0, cast("fx.Node | str", SINK)
        stack: list[tuple[fx.Node | str, Iterator[fx.Node | str], int]] = [(root, iter(children[root]), 0)]
        while stack:
            node, rest, entered = stack[-1]
            child = next(rest, None)
            clock += 1
            if child is None:
                times[node] = (entered, clock)
                stack.pop()
            else:
                stack.append((child, iter(children.get(child, ())), clock))
        return times

    def post_dominates(self, later: fx.Node, node: fx.Node) -> bool:
        """Whether everything that `node`'s value reaches, it reaches through `later`."""
        outer, inner = self._post_dominator_tree[later], self._post_dominator_tree[node]
        return outer[0] <= inner[0] and inner[1] <= outer[1]
