"""Cut a graph into regions, so that equal layers are compiled once and called many times.

A region is a run of consecutive nodes: order is kept, and with it every in-place update. Regions are cut where a
residual branch begins or ends; runs that repeat (a layer's attention and MLP) are then merged into one region.
Two regions with the same `key` compute the same function of their inputs.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx

from srrc.ops.gated_region import gated_region
from srrc.passes.region_key import free_symbols, region_key
from srrc.pathways.effects import changes_interpreter
from srrc.runtime.driver import Condition

T = TypeVar("T")

LONGEST_PERIOD = 16
"""Longest repeating run of slices that is looked for: six layers of two branches (Gemma 3), and some slack."""


@dataclass(frozen=True)
class Region:
    """A run of nodes, the values it reads from before it (`inputs`) and those read after it (`outputs`).

    condition: when it runs, and what stands for it otherwise: its one node is a `gated_region` then
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    key: str
    condition: Condition | None = None

    def module(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The region as a graph of its own: a placeholder an input, a tuple of the outputs."""
        graph = fx.Graph()
        if self.condition is not None:
            held = _subgraph(gm, self.nodes[0])
            graph.output((graph.graph_copy(held.graph, {}),))
            return fx.GraphModule(held, graph)
        copies: dict[fx.Node, fx.Node] = {}
        for index, node in enumerate(self.inputs):
            copies[node] = graph.placeholder(f"arg{index}")
            copies[node].meta = dict(node.meta)
            if node.op == "get_attr":  # as Dynamo marks what stays the same tensor from call to call
                copies[node].meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self.outputs))
        submodules = {str(n.target): getattr(gm, str(n.target)) for n in self.nodes if n.op == "get_attr"}
        return fx.GraphModule(submodules, graph)


def partition(gm: fx.GraphModule, cuts: Iterable[fx.Node]) -> list[Region]:
    """Split `gm` after every node in `cuts` and merge what repeats. Returns the regions in order of execution.

    A `gated_region` is a region of its own, never merged with others.
    """
    nodes = [n for n in gm.graph.nodes if not _is_input(gm, n) and n.op != "output"]
    ends = set(cuts).intersection(may_end(nodes))
    slices: list[list[fx.Node]] = [[]]
    for node in nodes:
        if node.target is gated_region:
            slices += [[node], []]
            continue
        slices[-1].append(node)
        if node in ends:
            slices.append([])
    regions = [make_region(gm, nodes) for nodes in slices if nodes]
    found: list[Region] = []
    for gated, run in itertools.groupby(regions, key=lambda region: region.condition is not None):
        alike = [*run]
        groups = [[r] for r in alike] if gated else group_repeats(alike, key=lambda region: region.key)
        for group in groups:
            merged = [node for region in group for node in region.nodes]
            found.append(make_region(gm, merged) if len(group) > 1 else group[0])
    return found


def make_region(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> Region:
    """A region of these nodes; inputs in order of first use, outputs in order of definition."""
    if nodes[0].target is gated_region:
        return _conditional(gm, nodes[0])
    inside = set(nodes)
    read = dict.fromkeys(a for node in nodes for a in node.all_input_nodes if a not in inside)
    inputs = dict.fromkeys([*sizes_in(gm, [*read, *nodes]), *read])
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    return Region(tuple(nodes), tuple(inputs), tuple(outputs), region_key(gm, nodes, tuple(inputs), outputs))


def _conditional(gm: fx.GraphModule, node: fx.Node) -> Region:
    """The region of a `gated_region`: its key is its subgraph's, so that equal layers are compiled once."""
    keep, _, bypass, *operands = (each for each in node.args if isinstance(each, fx.Node))
    held = _subgraph(gm, node)
    inner = [*held.graph.nodes]
    own, body = [n for n in inner if n.op == "placeholder"], [n for n in inner if n.op.startswith("call_")]
    key = region_key(held, body, own, inner[-1].all_input_nodes)
    return Region((node,), tuple(operands), (node,), f"gated {key}", Condition(keep, bypass))


def _subgraph(gm: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The graph that a `gated_region` holds."""
    holder = node.args[1]
    assert isinstance(holder, fx.Node)
    held = getattr(gm, str(holder.target))
    assert isinstance(held, fx.GraphModule)
    return held


def group_repeats(items: Sequence[T], key: Callable[[T], str]) -> list[list[T]]:
    """Group a sequence so that each period of a repeating stretch becomes one group, every other item its own.

    At each place the period that covers the longest stretch wins, and the shortest of those: p a b a b a b h
    gives [p] [a b] [a b] [a b] [h].
    """
    keys = [key(item) for item in items]
    groups: list[list[T]] = []
    at = 0
    while at < len(items):
        period, times = _best_period(keys, at)
        for _ in range(times):
            groups.append(list(items[at : at + period]))
            at += period
    return groups


def _best_period(keys: Sequence[str], at: int) -> tuple[int, int]:
    best = (1, 1)
    for period in range(1, min(LONGEST_PERIOD, (len(keys) - at) // 2) + 1):
        unit, times = keys[at : at + period], 1
        while keys[at + times * period : at + (times + 1) * period] == unit:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def sizes_in(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The placeholders that hold the symbols in these nodes' shapes: Inductor wants every symbol as an input."""
    holders = {}
    for node in gm.graph.nodes:
        value = node.meta.get("example_value") if node.op == "placeholder" else None
        if isinstance(value, torch.SymInt):
            holders[value.node.expr] = node
    symbols = (
        {s: None for node in nodes for s in free_symbols(node.meta.get("example_value"))} if holders else {}
    )
    return [holders[symbol] for symbol in symbols if symbol in holders]


def _is_input(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value is there before the graph runs; the subgraph of a `gated_region` counts as such."""
    if node.op == "get_attr":
        held = isinstance(getattr(gm, str(node.target), None), torch.Tensor)
        return held or all(user.target is gated_region for user in node.users)
    return node.op == "placeholder"


def may_end(nodes: Sequence[fx.Node]) -> Sequence[fx.Node]:
    """The nodes after which a region may end: none between the first and the last that change what the nodes after
    them run under (autocast, vmap), since a region starts from the state that the whole graph starts from.
    """
    if any(n.op == "call_module" or _lasts(n) or _stays_inside(n) for n in nodes):
        return ()
    marks = [index for index, node in enumerate(nodes) if changes_interpreter(node)]
    return [*nodes[: marks[0]], *nodes[marks[-1] :]] if marks else nodes


def _lasts(node: fx.Node) -> bool:
    """True for a state that is set, not entered and left."""
    name = getattr(node.target, "__name__", "")
    return "_set_grad_enabled" in name or "inference_mode" in name


def _stays_inside(node: fx.Node) -> bool:
    """True for a number that Inductor cannot hand from one region to the next."""
    return isinstance(node.meta.get("example_value"), (torch.SymFloat, torch.SymBool))
