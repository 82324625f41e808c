"""Residual branches: a branch that adds next to nothing to the stream need not run.

Found: a sum of equal shapes in which one term depends on another, read through casts and reshapes. All that
leads to the first term alone (the region it post-dominates, up to the stream) is the branch; leaving it out
leaves the stream as it is. Sums of several terms (parallel attention and MLP) give one branch a term.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from srrc.pathways.base import Bypass, Pathway
from srrc.pathways.cost import node_cost, region_cost
from srrc.pathways.effects import changes_interpreter, written_arguments
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import operands, through_views
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class Branch:
    """`add` = stream + `exit`, and `exit` is computed from `entry`.

    entry:  the value on the stream's side that the branch reads (the stream, or a norm that branches share)
    exit:   the branch's value
    add:    the sum it goes into
    stream: the term that goes on when the branch is left out
    kept:   nodes of the branch that must run all the same: what they compute is also handed out or stored
            (keys and values for the cache). The pathway's `nodes` and `cost` leave them out.
    """

    entry: fx.Node
    exit: fx.Node
    add: fx.Node
    stream: fx.Node
    kept: tuple[fx.Node, ...]


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each branch over weight matrices; refusals for branches that cannot be cut out."""
    for node in view.nodes:
        if not _is_sum(view, node) or _continues(view, node):
            continue
        terms = list(_terms(view, node))
        branches = 0
        for term, add in terms:
            streams = [
                other for other, _ in terms if other is not term and view.depends(term, through_views(other))
            ]
            if not streams:
                continue
            stream = max(streams, key=lambda other: view.order[through_views(other)])
            found = _branch(view, term, add, stream)
            branches += found is not None
            if found is not None:
                yield found
        if not branches:
            yield from _near_miss(view, [term for term, _ in terms])


def _is_sum(view: GraphView, node: object) -> bool:
    pair = operands(node, "add")
    tensor = view.tensor(node)
    if pair is None or tensor is None or not tensor.is_floating_point():
        return False
    return all(view.tensor(each) is not None and view.shape(each) == view.shape(node) for each in pair)


def _continues(view: GraphView, node: fx.Node) -> bool:
    users = list(node.users)
    return len(users) == 1 and _is_sum(view, users[0])


def _terms(view: GraphView, add: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(term, the addition it goes into) of the whole sum that ends in `add`."""
    for operand in operands(add, "add") or ():
        if _is_sum(view, operand) and len(operand.users) == 1:
            yield from _terms(view, operand)
        else:
            yield operand, add


def _region(view: GraphView, end: fx.Node, stream: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
    """(what depends on `stream` or on weights and leads to `end` alone, what it reads of the stream)."""
    region, frontier, stack = {end}, set[fx.Node](), [end]
    while stack:
        for source in view.sources[stack.pop()]:
            private = source is not stream and view.post_dominates(end, source)
            if source in region or source.op in {"placeholder", "get_attr"}:
                continue
            if private and (view.depends(source, stream) or source in view.constants):
                region.add(source)
                stack.append(source)
            elif view.depends(source, stream):
                frontier.add(source)
    return region, frontier


def _contracts(view: GraphView, nodes: set[fx.Node]) -> bool:
    """Whether `nodes` multiply with a weight matrix; sums of embeddings do not."""
    if not any(len(view.shape(weight)) >= 2 for weight in view.parameter_nodes(nodes)):
        return False
    return any(node_cost(view, node).flops != 0 for node in nodes)


def _branch(view: GraphView, end: fx.Node, add: fx.Node, stream: fx.Node) -> Pathway | Refusal | None:
    base = through_views(stream)
    region, frontier = _region(view, end, base)
    if not _contracts(view, region):
        return None
    place = view.parameters_of(region)[0]
    escapes = {n for n in region if n is not end and any(user not in region for user in n.users)}
    escapes |= {n for n in region if view.storage.writes_outside(n)}
    if any(user is not add for user in end.users):
        escapes.add(end)
    kept = {n for n in region if any(view.depends(escape, n) for escape in escapes)}
    nodes = view.in_order(region - kept)
    if not _contracts(view, set(nodes)):
        return Refusal(place, "residual", Reason.USED_ELSEWHERE, f"{end.name} is also read outside the sum")
    between = view.nodes[view.order[nodes[0]] : view.order[end]]
    state = next((n for n in between if changes_interpreter(n)), None)
    if state is not None:
        return Refusal(place, "residual", Reason.INTERPRETER_STATE, state.name)
    writer = _overwrites(view, nodes, between)
    if writer is not None:
        return Refusal(place, "residual", Reason.WRITTEN_BETWEEN, writer.name)
    return Pathway(
        kind="residual",
        place=place,
        site=Branch(frontier.pop() if len(frontier) == 1 else base, end, add, stream, view.in_order(kept)),
        nodes=nodes,
        inputs=view.inputs_of(nodes),
        output=end,
        weights=view.parameters_of(nodes),
        units=1,
        cost=region_cost(view, nodes),
        bypass=Bypass.IDENTITY,
    )


def _overwrites(view: GraphView, nodes: tuple[fx.Node, ...], between: tuple[fx.Node, ...]) -> fx.Node | None:
    """A node outside the branch that writes to what the branch has read: the branch cannot move past it."""
    inside, read = set(nodes), set[fx.Node]()
    for node in between:
        if node in inside:
            read.update(view.storage.root(source) for source in node.all_input_nodes)
        elif any(view.storage.root(target) in read for target in written_arguments(node)):
            return node
    return None


def _near_miss(view: GraphView, terms: list[fx.Node]) -> Iterator[Refusal]:
    """A refusal where two terms over weights start from one value: a sum of branches without a stream."""
    starts: dict[fx.Node, fx.Node] = {}
    for term in terms:
        region = _closure(view, term)
        if not _contracts(view, region):
            continue
        for source in view.inputs_of(region):
            if source in starts:
                place = view.parameters_of(region)[0]
                yield Refusal(
                    place, "residual", Reason.NO_STREAM, f"{source.name} goes into both terms of a sum"
                )
                return
            if source.op != "placeholder":
                starts[source] = term


def _closure(view: GraphView, end: fx.Node) -> set[fx.Node]:
    region, stack = {end}, [end]
    while stack:
        for source in view.sources[stack.pop()]:
            if source.op != "placeholder" and source not in region and view.post_dominates(end, source):
                region.add(source)
                stack.append(source)
    return region
