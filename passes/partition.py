"""Cut a graph into regions, so that equal layers are compiled once and called many times.

A region is a run of consecutive nodes: order is kept, and with it every in-place update. Regions are cut where a
residual branch begins or ends; runs that repeat (a layer's attention and MLP) are then merged into one region.
Two regions with the same `key` compute the same function of their inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx

from srrc.passes.region_key import free_symbols, region_key
from srrc.pathways.effects import changes_interpreter

T = TypeVar("T")

LONGEST_PERIOD = 16
"""Longest repeating run of slices that is looked for: six layers of two branches (Gemma 3), and some slack."""


@dataclass(frozen=True)
class Region:
    """A run of nodes, the values it reads from before it (`inputs`) and those read after it (`outputs`)."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    key: str

    def module(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The region as a graph of its own: a placeholder an input, a tuple of the outputs."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for index, node in enumerate(self.inputs):
            copies[node] = graph.placeholder(f"arg{index}")
            copies[node].meta = dict(node.meta)
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self.outputs))
        submodules = {str(n.target): getattr(gm, str(n.target)) for n in self.nodes if n.op == "get_attr"}
        return fx.GraphModule(submodules, graph)


def partition(gm: fx.GraphModule, cuts: Iterable[fx.Node]) -> list[Region]:
    """Split `gm` after every node in `cuts` and merge what repeats. Returns the regions in order of execution."""
    nodes = [n for n in gm.graph.nodes if not _is_input(gm, n) and n.op != "output"]
    ends = set(cuts).intersection(_may_end(nodes))
    slices: list[list[fx.Node]] = [[]]
    for node in nodes:
        slices[-1].append(node)
        if node in ends:
            slices.append([])
    regions = [make_region(gm, nodes) for nodes in slices if nodes]
    return [
        make_region(gm, [node for region in group for node in region.nodes]) if len(group) > 1 else group[0]
        for group in group_repeats(regions, key=lambda region: region.key)
    ]


def make_region(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> Region:
    """A region of these nodes; inputs in order of first use, outputs in order of definition."""
    inside = set(nodes)
    read = dict.fromkeys(a for node in nodes for a in node.all_input_nodes if a not in inside)
    inputs = dict.fromkeys([*_sizes(gm, [*read, *nodes]), *read])
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    return Region(tuple(nodes), tuple(inputs), tuple(outputs), region_key(gm, nodes, tuple(inputs), outputs))


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


def _sizes(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[fx.Node]:
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
    if node.op == "get_attr":
        return isinstance(getattr(gm, str(node.target), None), torch.Tensor)
    return node.op == "placeholder"


def _may_end(nodes: Sequence[fx.Node]) -> Sequence[fx.Node]:
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
