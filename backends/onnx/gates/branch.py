"""srrc::Branch: a residual branch that runs for the tokens that its gate keeps.

    Branch(entry [B, S, H], probe [H + 1], value [B, S, N], other [B, S, N] or none; gate) -> [B, S, N]

Dropped tokens have `other` (the same branch with coarse weights), or 0. In plain ONNX:

    chosen = If no token is kept:  nothing, else `value` of the kept positions
    result = If any is dropped:    `other` of the dropped positions, and both put in their places, else `chosen`

The first `If` is not there where the branch may be computed for no position in no time, as an MLP may.
All that leads to `value` or `other` alone moves inside. What the branch hands out elsewhere (keys and values for the
cache) stays outside and runs always. The addition of the stream goes along where it can. No weight is read in an `If`
inside of an `If`, where ONNX Runtime packs none. Attention with an `other` is one `If` around both (`merge.py`).
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, fx

from srrc.backends.onnx.build import (
    Nodes,
    choose,
    constant,
    discard,
    op,
    replace_node,
    total,
    width_of,
    zeros,
)
from srrc.backends.onnx.gates.merge import Merge, NotAlikeError
from srrc.backends.onnx.gates.part import Part
from srrc.backends.onnx.gates.token_choice import TokenChoice, biases_of, token_choices
from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.regions import Copies, copy_nodes
from srrc.backends.onnx.symbolic import symbolic


def lower(lowering: Lowering, keep: fx.Node, gate: str) -> None:
    """Replace each mask that the `srr::layer_gate` node `keep` decides."""
    entry, probe, _, _ = keep.args
    for mask in list(keep.users):
        _, value, other = mask.args
        args = (gate, entry, probe, value, *([other] if isinstance(other, fx.Node) else []))
        with lowering.gm.graph.inserting_before(mask):
            lowering.replace(mask, gated_branch, args)
    lowering.gm.graph.erase_node(keep)


def gated_branch(gate: str, entry: Tensor, probe: Tensor, value: Tensor, *other: Tensor) -> Tensor:
    """Exports as srrc::Branch."""
    return symbolic("srrc::Branch", (entry, probe, value, *other), value.shape, value.dtype, {"gate": gate})


def leave(node: ir.Node) -> None:
    """Take the gate out of the graph: the branch runs for every token."""
    replace_node(node, node.inputs[2])


def limits_of(node: ir.Node) -> NDArray[np.float32]:
    """What is taken off the logarithm of the threshold: float32 [1]."""
    return biases_of(node.inputs[1])


def expand(node: ir.Node, limit: ir.Value) -> None:
    """Put standard operators in the place of a `Branch`. limit: float32 [1]."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    entry, value, other = node.inputs[0], node.inputs[2], node.inputs[3] if len(node.inputs) > 3 else None
    assert entry is not None
    assert value is not None
    assert value.shape is not None
    axis = len(value.shape) - 2
    nodes: Nodes = []
    (choice,) = token_choices(nodes, node, entry, node.inputs[1], limit, axis)
    add = addition(node)
    end = node.outputs[0] if add is None else add.outputs[0]
    stream = None if add is None else next(each for each in add.inputs if each is not node.outputs[0])
    part = Part.of(node, value, axis)
    regions = [*part.region]
    result = ir.val("result", end.dtype, end.shape)
    if other is None:
        left_out_or(nodes, part, choice, (entry, value), stream, result)
    else:
        stand_in = Part.of(node, other, axis)
        regions += stand_in.region
        if part.takes_no_rows or not _merged(
            nodes, part, stand_in, choice, entry, (value, other), stream, result
        ):
            _stood_in_for(nodes, part, stand_in, choice, value, stream, result)
    graph.insert_before(node if add is None else add, nodes)
    end.replace_all_uses_with(result)
    graph.remove([*([] if add is None else [add]), node, *_reversed(graph, regions)], safe=True)


def left_out_or(
    nodes: Nodes,
    part: Part,
    choice: TokenChoice,
    like: tuple[ir.Value | None, ir.Value],
    stream: ir.Value | None,
    result: ir.Value,
) -> None:
    """`result` is `stream` + `part` for the tokens that are kept, `stream` for the others.

    like: (a value with a row a token, what the part would be): zeros are made like them where there is no stream
    """
    left_out: Nodes = []
    bypass = stream if stream is not None else zeros(left_out, *like)
    computed: Nodes = nodes if part.takes_no_rows else []
    if part.selects:
        choice.take_kept(computed, part.rows)
    computed += part.rows.nodes
    some: Nodes = []
    put = _put(some, choice, part.value, part, stream, None)
    whole: Nodes = []
    every = (whole, [total(whole, stream, part.value)])
    if part.takes_no_rows:
        mixed: Nodes = []
        found = ir.val("mixed", result.dtype, result.shape)
        nothing = choice.nothing(mixed)
        choose(mixed, nothing, (left_out, [bypass]), (some, [put]), [found], ("left_out", "put_back"))
        choose(nodes, choice.dropped, (mixed, [found]), every, [result], ("some_dropped", "every_token"))
    else:
        found = ir.val("computed", result.dtype, result.shape)
        choose(computed, choice.dropped, (some, [put]), every, [found], ("put_back", "every_token"))
        nothing = choice.nothing(nodes)
        choose(nodes, nothing, (left_out, [bypass]), (computed, [found]), [result], ("left_out", "computed"))


def _merged(
    nodes: Nodes,
    part: Part,
    other: Part,
    choice: TokenChoice,
    like: ir.Value,
    values: tuple[ir.Value, ir.Value],
    stream: ir.Value | None,
    result: ir.Value,
) -> bool:
    """One `If` around a branch that mixes tokens: the branch, or it and its stand-in in one pass.

    Its weights are read in two places, so ONNX Runtime holds them twice, packed for its kernels in both.
    False where the two are not alike; then nothing was done. like: a value with a row for each token.
    """
    mixed: Nodes = []
    merge = Merge(mixed, choice, like, part, other)
    try:
        some = (mixed, [total(mixed, stream, merge.both(*values))])
    except NotAlikeError:
        discard(mixed)
        return False
    copies: Copies = {}
    whole = copy_nodes(part.region, copies)
    every = (whole, [total(whole, stream, copies[values[0]])])
    choose(nodes, choice.dropped, some, every, [result], ("some_dropped", "all_kept"))
    return True


def _stood_in_for(
    nodes: Nodes,
    part: Part,
    other: Part,
    choice: TokenChoice,
    value: ir.Value,
    stream: ir.Value | None,
    result: ir.Value,
) -> None:
    """The branch for the tokens that are kept, and what stands in for it for the others."""
    every: Nodes = nodes if part.takes_no_rows else []
    if part.selects:
        choice.take_kept(every, part.rows)
    every += part.rows.nodes
    mixed: Nodes = []
    if part.takes_no_rows:
        chosen, nothing = part.value, choice.nothing(mixed)
    else:
        none: Nodes = []
        assert value.shape is not None
        assert value.dtype is not None
        empty = constant(
            none, np.zeros([1] * (len(value.shape) - 1) + [width_of(value)]), value.dtype.numpy()
        )
        chosen, nothing = ir.val("chosen", value.dtype), choice.nothing(nodes)
        choose(nodes, nothing, (none, [empty]), (every, [part.value]), [chosen], ("none_kept", "kept"))
    if other.selects:
        choice.take_dropped(mixed, other.rows, nothing)
    mixed += other.rows.nodes
    alone: Nodes = []
    sums = (alone, [total(alone, stream, other.value)])
    both: Nodes = []
    put = _put(both, choice, chosen, part, stream, other)
    found = ir.val("mixed", result.dtype, result.shape)
    choose(mixed, nothing, sums, (both, [put]), [found], ("every_token", "put_back"))
    whole: Nodes = []
    kept = (whole, [total(whole, stream, chosen)])
    choose(nodes, choice.dropped, (mixed, [found]), kept, [result], ("some_dropped", "all_kept"))


def _put(
    nodes: Nodes,
    choice: TokenChoice,
    value: ir.Value,
    part: Part,
    stream: ir.Value | None,
    other: Part | None,
) -> ir.Value:
    """What was computed for chosen positions, in its places; and in the others' what stands in for it.

    value: what `part` computes, by whichever name it goes here
    """
    kept = choice.kept(nodes)
    if part.selects:
        value = choice.back(nodes, value, kept)
    if other is not None:
        rest = other.value
        if other.selects:
            rest = choice.back(nodes, rest, choice.low)
        return total(nodes, stream, op(nodes, "Where", [kept, value, rest]))
    if stream is not None:
        return op(nodes, "Where", [kept, total(nodes, stream, value), stream])
    zero = op(nodes, "CastLike", [constant(nodes, 0, np.float32), value])
    return op(nodes, "Where", [kept, value, zero])


def addition(node: ir.Node) -> ir.Node | None:
    """The sum behind the branch, where nothing else reads the branch's value."""
    out = node.outputs[0]
    users = list(out.consumers())
    if (
        len(users) != 1
        or users[0].op_type != "Add"
        or out.is_graph_output()
        or users[0].graph is not node.graph
    ):
        return None
    other = [each for each in users[0].inputs if each is not out]
    if len(other) != 1 or other[0] is None or other[0].shape != users[0].outputs[0].shape:
        return None
    return users[0]


def _reversed(graph: ir.Graph, nodes: list[ir.Node]) -> list[ir.Node]:
    """`nodes`, the last of the graph first: no node goes before those that read it."""
    wanted = set(nodes)
    return [node for node in reversed(graph) if node in wanted]
