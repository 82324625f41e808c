"""A read-only view of one FX graph that every finder shares: parameter names, shapes, order, dominators."""

import functools
import operator
from collections.abc import Iterable, Mapping

import networkx as nx
import sympy
import torch
from torch import fx

SINK = "sink"
"""Stands after the graph's output in `flow`, so that post-dominators have one root."""


def size(value: object) -> sympy.Expr:
    """One dimension as a sympy expression: an int, or the SymInt's own expression over the graph's symbols."""
    if isinstance(value, torch.SymInt):
        return value.node.expr
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

    def is_parameter(self, node: object) -> bool:
        """Whether `node` is a placeholder that holds a parameter or buffer of the model."""
        return isinstance(node, fx.Node) and node.op == "placeholder" and node.name in self.fqns

    def fqn(self, node: fx.Node) -> str:
        """The parameter's fully qualified name. Raises KeyError for a node that holds none."""
        return self.fqns[node.name]

    def tensor(self, node: object) -> torch.Tensor | None:
        """The fake tensor that `node` computes, or None where it computes something else."""
        value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        return value if isinstance(value, torch.Tensor) else None

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The shape over the graph's symbols. Raises ValueError for a node that computes no tensor."""
        tensor = self.tensor(node)
        if tensor is None:
            raise ValueError(f"{node.name} computes no tensor")
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

    def in_order(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """Each node once, in graph order."""
        return tuple(sorted(set(nodes), key=self.order.__getitem__))

    def parameters_of(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        """Fully qualified names of the parameters that `nodes` read, in the order they are read."""
        names = {
            self.fqn(a): None for n in self.in_order(nodes) for a in n.all_input_nodes if self.is_parameter(a)
        }
        return tuple(names)

    def inputs_of(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """What `nodes` read from outside themselves, parameters excepted, in graph order."""
        inside = set(nodes)
        outside = {
            a for n in inside for a in n.all_input_nodes if a not in inside and not self.is_parameter(a)
        }
        return self.in_order(outside)

    @functools.cached_property
    def flow(self) -> "nx.DiGraph[fx.Node | str]":
        """Value flow between the computing nodes (no placeholders), every sink joined to `SINK`."""
        flow: nx.DiGraph[fx.Node | str] = nx.DiGraph()
        flow.add_node(SINK)
        for node in self.nodes:
            if node.op == "placeholder":
                continue
            flow.add_node(node)
            flow.add_edges_from(
                (source, node) for source in node.all_input_nodes if source.op != "placeholder"
            )
        flow.add_edges_from(
            (node, SINK) for node in list(flow) if node is not SINK and flow.out_degree(node) == 0
        )
        return flow

    @functools.cached_property
    def post_dominators(self) -> dict[fx.Node | str, fx.Node | str]:
        """Each node's immediate post-dominator: the first node that all of its value's paths pass."""
        return dict(nx.immediate_dominators(self.flow.reverse(copy=False), SINK))
