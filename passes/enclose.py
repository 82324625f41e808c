"""Encloses the branches that a layer gate masks in regions of their own, which a backend can leave out.

A layer gate is put in as a mask: `where(keep, exit, 0)`. With few rows all are kept or none, so what only leads to
`exit` need not run where none is. It moves down to the mask, into a subgraph, under one `gated_region` node; the
addition goes with it where it can, so that a branch that is left out leaves the stream as it is, to the very tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.ops.gated_region import gated_region
from srrc.passes.context import Context
from srrc.passes.emit import value_of
from srrc.passes.linear_arguments import replace
from srrc.passes.partition import may_end, sizes_in
from srrc.passes.rows import has_few_rows
from srrc.pathways.effects import Storage, changes_interpreter, written_arguments
from srrc.pathways.patterns import called_name, is_contraction, is_method, operands
from srrc.reasons import Reason, Refusal

_VIEWS = ("expand", "permute", "squeeze", "t", "transpose", "unsqueeze", "view")


@dataclass(frozen=True)
class Mask:
    """`node` = where(keep, exit, 0), as a layer gate is put in; `keep` is decided from `entry`."""

    node: fx.Node
    keep: fx.Node
    entry: fx.Node
    exit: fx.Node


@dataclass(frozen=True)
class Enclosure:
    """What becomes a region: `body`, in graph order, which ends in the mask's exit, or in `add` behind the mask.

    add: the sum that goes along, None where it must stay outside: then zeros stand for what the branch adds
    """

    mask: Mask
    body: tuple[fx.Node, ...]
    add: fx.Node | None

    @property
    def end(self) -> fx.Node:
        """The node that the region stands for."""
        return self.mask.node if self.add is None else self.add


@dataclass(frozen=True)
class Enclose:
    """Makes a `gated_region` of each branch that a layer gate masks, and a refusal of each that must stay as it is."""

    fake_mode: FakeTensorMode
    name: str = "enclose"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place."""
        masks = [mask for mask in _masks(gm) if has_few_rows(mask.entry, context.sizes)]
        if not masks:
            return gm
        surroundings = _Surroundings(gm)
        found: list[Enclosure] = []
        for mask in masks:
            enclosure = surroundings.enclosure(mask, found)
            if isinstance(enclosure, Enclosure):
                found.append(enclosure)
            else:
                _stays_masked(gm, mask, context, *enclosure)
        for index, enclosure in enumerate(found):
            _enclose(gm, enclosure, f"srr_region_{index}", self.fake_mode)
        return gm


class _Surroundings:
    """The graph before anything is enclosed, and what that must not disturb."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._nodes: tuple[fx.Node, ...] = tuple(gm.graph.nodes)
        self._order = {node: index for index, node in enumerate(self._nodes)}
        self._storage = Storage(self._nodes)
        self._ends = set(may_end([n for n in self._nodes if n.op not in {"placeholder", "output"}]))

    def enclosure(self, mask: Mask, others: list[Enclosure]) -> Enclosure | tuple[Reason, str]:
        """The region that `mask` can become beside `others`; or why it cannot."""
        if any(mask.node in other.body for other in others):
            return Reason.OVERLAPS, "it lies inside another branch"
        body = self._body(mask)
        if not any(is_contraction(node) or str(node.target).startswith("srr.") for node in body):
            return Reason.USED_ELSEWHERE, f"nothing leads to {mask.exit.name} alone"
        add = self._addition(mask)
        found = Enclosure(mask, body, None if any(add is other.add for other in others) else add)
        if found.add is None and value_of(mask.entry).shape != value_of(mask.exit).shape:
            return Reason.UNSUPPORTED_SHAPE, "the branch is of another width than the stream"
        writer = self._overwrites(body, found.end)
        if writer is not None:
            return Reason.WRITTEN_BETWEEN, writer.name
        if not {found.end, found.end.prev, mask.node}.issubset(self._ends):
            return Reason.INTERPRETER_STATE, found.end.name
        return found

    def _body(self, mask: Mask) -> tuple[fx.Node, ...]:
        """The nodes after the gate that lead to the mask's exit alone and may wait for the gate's decision."""
        between = self._nodes[self._order[mask.keep] + 1 : self._order[mask.node]]
        blocked = {node for node in between if not _may_wait(node)}
        while True:
            inside: set[fx.Node] = set()
            for node in reversed(between):
                only_here = (
                    set(node.users) == {mask.node} if node is mask.exit else inside.issuperset(node.users)
                )
                if node.users and only_here and node not in blocked:
                    inside.add(node)
            stuck = {n for n in inside if any(not _crosses(a) for a in n.all_input_nodes if a not in inside)}
            if not stuck:
                inside |= self._views(inside)
                return tuple(node for node in self._nodes[: self._order[mask.node]] if node in inside)
            blocked |= stuck

    def _views(self, inside: set[fx.Node]) -> set[fx.Node]:
        """Views that the body shares with others: it makes its own, since views are costly to hand to a region."""
        found: set[fx.Node] = set()
        stack = [read for node in inside for read in node.all_input_nodes]
        while stack:
            node = stack.pop()
            if node not in inside and node not in found and is_method(node, *_VIEWS) and _may_wait(node):
                found.add(node)
                stack += node.all_input_nodes
        return found

    def _addition(self, mask: Mask) -> fx.Node | None:
        """The sum behind the mask, where what it gives may be the other term itself."""
        add = next(iter(mask.node.users)) if len(mask.node.users) == 1 else None
        terms = None if add is None else operands(add, "add")
        if add is None or terms is None:
            return None
        other = terms[0] if terms[1] is mask.node else terms[1]
        if not isinstance(other, fx.Node) or any(user.op == "output" for user in add.users):
            return None
        if self._storage.is_written(other) or self._storage.is_written(add):
            return None
        one, both = value_of(other), value_of(add)
        return add if one.dtype == both.dtype and one.shape == both.shape else None

    def _overwrites(self, body: tuple[fx.Node, ...], end: fx.Node) -> fx.Node | None:
        """A node that writes to what the body has read by then: the body cannot move past it. A view reads nothing."""
        inside, read = set(body), set[fx.Node]()
        for node in self._nodes[self._order[body[0]] : self._order[end]]:
            if is_method(node, *_VIEWS):
                continue
            if node in inside:
                read.update(self._storage.root(source) for source in node.all_input_nodes)
            elif any(self._storage.root(target) in read for target in written_arguments(node)):
                return node
        return None


def _masks(gm: fx.GraphModule) -> Iterator[Mask]:
    for keep in gm.graph.find_nodes(op="call_function", target=torch.ops.srr.layer_gate.default):
        for node in keep.users:
            entry, end = keep.args[0], node.args[1]
            if node.target is torch.where and isinstance(entry, fx.Node) and isinstance(end, fx.Node):
                yield Mask(node, keep, entry, end)


def _stays_masked(gm: fx.GraphModule, mask: Mask, context: Context, reason: Reason, detail: str) -> None:
    """Record that a branch is computed whatever its gate says: the gate saves nothing, and is to count nothing."""
    (counters,) = (each for each in mask.keep.args[3:4] if isinstance(each, fx.Node))
    memory = getattr(gm, str(counters.target)).data_ptr()
    for index, gate in enumerate(context.gates):
        if gate.counters.data_ptr() == memory:
            context.gates[index] = gate.without_savings()
            context.refusals.append(Refusal(gate.id.split(":", 1)[1], "region", reason, detail))


def _may_wait(node: fx.Node) -> bool:
    """Whether `node` may run later, or not at all: it writes to nothing but a counter of its own."""
    if node.op not in {"call_function", "call_method"} or changes_interpreter(node):
        return False
    if "dropout" in called_name(node) or "rand" in called_name(node):
        return False  # others' random numbers would change
    return all(target.op == "get_attr" and len(target.users) == 1 for target in written_arguments(node))


def _crosses(node: fx.Node) -> bool:
    """Whether a region can be given the value: a tensor or a size."""
    return isinstance(node.meta.get("example_value"), (torch.Tensor, torch.SymInt))


def _enclose(gm: fx.GraphModule, enclosure: Enclosure, name: str, fake_mode: FakeTensorMode) -> None:
    mask, end = enclosure.mask, enclosure.end
    reads, subgraph = _subgraph(gm, enclosure)
    gm.add_submodule(name, subgraph)
    with gm.graph.inserting_before(end):
        bypass = _zeros(gm.graph, mask, fake_mode) if enclosure.add is None else _other(enclosure.add, mask)
        held = gm.graph.get_attr(name)
        region = gm.graph.call_function(gated_region, (mask.keep, held, bypass, *reads))
    replace(gm.graph, tuple(dict.fromkeys([*enclosure.body, mask.node, end])), end, region)


def _other(add: fx.Node, mask: Mask) -> fx.Node:
    return next(term for term in add.all_input_nodes if term is not mask.node)


def _zeros(graph: fx.Graph, mask: Mask, fake_mode: FakeTensorMode) -> fx.Node:
    """Zeros in the shape of the branch's value, made from the stream's: the branch's own is not there to ask."""
    dtype = value_of(mask.exit).dtype
    node = graph.call_function(torch.zeros_like, (mask.entry,), {"dtype": dtype})
    with fake_mode:
        node.meta["example_value"] = torch.zeros_like(value_of(mask.entry), dtype=dtype)
    return node


def _subgraph(gm: fx.GraphModule, enclosure: Enclosure) -> tuple[list[fx.Node], fx.GraphModule]:
    """What the region reads, sizes first, and the graph that computes `end` from it as if the mask kept all."""
    mask, inside = enclosure.mask, [*enclosure.body]
    if enclosure.add is not None:
        inside.append(enclosure.add)
    own = {*inside, mask.node}
    read = [
        each for each in dict.fromkeys(a for node in inside for a in node.all_input_nodes) if each not in own
    ]
    reads = list(dict.fromkeys([*sizes_in(gm, [*read, *inside]), *read]))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(reads):
        copies[node] = graph.placeholder(f"arg{index}")
        copies[node].meta = dict(node.meta)
    for node in inside:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node is mask.exit:
            copies[mask.node] = copies[node]
    graph.output(copies[inside[-1]])
    return reads, fx.GraphModule(gm, graph)
