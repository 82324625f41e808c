"""srrc::Branch: a residual branch that runs for the tokens that its gate keeps, and not at all where it keeps none.

    Branch(entry [B, S, H], probe [H + 1], threshold [1], value [B, S, N]) -> [B, S, N]

The score of a token is exp(probe[:H] . entry / rms(entry) + probe[H]) (`srrc.ops.layer_gate`), compared as a logarithm.

    If no token's score is above the threshold:  0
    else if every token's is:                    value
    else:                                        value for the positions where some row of the batch keeps it, put back

The addition of the stream goes along where it can, so that what is left out costs nothing. All that leads to `value`
alone moves inside. What the branch hands out elsewhere (keys and values for the cache) stays outside and runs always.
"""

import itertools

import numpy as np
import onnx_ir as ir

from srrc.backends.onnx.regions import branch, copy_nodes, leading_to
from srrc.backends.onnx.select_rows import RowSelection


def expand(node: ir.Node) -> None:
    """Replace a `Branch` in its graph."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    entry, probe, threshold, value = node.inputs
    assert entry is not None and probe is not None and threshold is not None and value is not None
    made: list[ir.Node] = []
    score, limit = _score(made, node)
    region = leading_to(node, [value])
    add = _addition(node)
    end = node.outputs[0] if add is None else add.outputs[0]
    stream = None if add is None else next(each for each in add.inputs if each is not node.outputs[0])
    highest = _op(made, "ReduceMax", [score], {"keepdims": 0})
    nothing = _op(made, "LessOrEqual", [highest, limit])
    left_out = _left_out(entry, value, stream)
    computed = _computed(region, value, stream, score, limit)
    result = ir.val("result", end.dtype, end.shape)
    choice = _if(nothing, left_out, computed, [result])
    last = node if add is None else add
    graph.insert_before(last, [*made, choice])
    end.replace_all_uses_with(result)
    graph.remove([*([] if add is None else [add]), node, *reversed(region)], safe=True)


def _score(made: list[ir.Node], node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The logarithm of each token's score without the probe's bias [B, S, 1], and what it is compared with [1]."""
    entry, probe, threshold, _ = node.inputs
    assert entry is not None and probe is not None
    weights = ir.convenience.get_const_tensor(probe)
    assert weights is not None
    numbers = weights.numpy().astype(np.float32)
    direction, bias = numbers[:-1], numbers[-1:]
    norm = _norm_of(entry, node)
    if norm is None:
        wide = entry if entry.dtype == ir.DataType.FLOAT else _op(made, "Cast", [entry], {"to": ir.DataType.FLOAT})
        ones = _constant(made, np.ones_like(direction))
        normed = _op(made, "RMSNormalization", [wide, ones], {"epsilon": 0.0, "axis": -1})
    else:
        normed, scale = norm
        direction = direction / scale
        if normed.dtype != ir.DataType.FLOAT:
            normed = _op(made, "Cast", [normed], {"to": ir.DataType.FLOAT})
    score = _op(made, "MatMul", [normed, _constant(made, direction[:, None])])
    logarithm = _op(made, "Log", [threshold])
    return score, _op(made, "Sub", [logarithm, _constant(made, bias)])


def _norm_of(entry: ir.Value, node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """An RMS norm of `entry` that the graph computes before `node` anyway, and its scale."""
    users = {user for user in entry.consumers() if user.op_type == "RMSNormalization" and user.inputs[0] is entry}
    for user in itertools.takewhile(lambda each: each is not node, node.graph or ()):
        scale = ir.convenience.get_const_tensor(user.inputs[1]) if user in users else None
        if scale is not None and np.all(np.abs(scale.numpy().astype(np.float32)) > 1e-3):
            return user.outputs[0], scale.numpy().astype(np.float32)
    return None


def _addition(node: ir.Node) -> ir.Node | None:
    """The sum behind the branch, where nothing else reads the branch's value."""
    out = node.outputs[0]
    users = list(out.consumers())
    if len(users) != 1 or users[0].op_type != "Add" or out.is_graph_output() or users[0].graph is not node.graph:
        return None
    other = [each for each in users[0].inputs if each is not out]
    if len(other) != 1 or other[0] is None or other[0].shape != users[0].outputs[0].shape:
        return None
    return users[0]


def _left_out(entry: ir.Value, value: ir.Value, stream: ir.Value | None) -> ir.Graph:
    """The stream as it is; or zeros in the shape of a value that is not there to ask for it."""
    if stream is not None:
        return branch([], [stream], "left_out")
    assert value.shape is not None and value.dtype is not None
    nodes: list[ir.Node] = []
    rows = _op(nodes, "Shape", [entry], {"start": 0, "end": -1})
    width = _constant(nodes, np.array(value.shape[-1:], dtype=np.int64))
    shape = _op(nodes, "Concat", [rows, width], {"axis": 0})
    zero = ir.tensor(np.zeros(1, dtype=value.dtype.numpy()))
    return branch(nodes, [_op(nodes, "ConstantOfShape", [shape], {"value": zero})], "left_out")


def _computed(
    region: list[ir.Node], value: ir.Value, stream: ir.Value | None, score: ir.Value, limit: ir.Value
) -> ir.Graph:
    """The branch where some token is kept. Its weights are read in one place: two would keep ONNX Runtime from packing
    them.
    """
    axis = 0 if value.shape is None else len(value.shape) - 2
    rows = RowSelection(set(region))
    chosen = rows.some(value, axis) if axis > 0 else value
    nodes: list[ir.Node] = []
    if not rows.contractions:
        copies: dict[ir.Value, ir.Value] = {}
        nodes += copy_nodes(region, copies)
        chosen = copies[value]
        return branch(nodes, [_sum(nodes, stream, chosen)], "computed")
    lowest = _op(nodes, "ReduceMin", [score], {"keepdims": 0})
    dropped = _op(nodes, "LessOrEqual", [lowest, limit])
    nodes.append(_if(dropped, _gathered(rows, score, limit, axis), _as_they_are(rows, score, axis), _provided(rows)))
    nodes += rows.nodes
    back, every = _put_back(chosen, value, stream, score, limit, axis), _whole(chosen, stream)
    result = ir.val("result", value.dtype, value.shape)
    nodes.append(_if(dropped, back, every, [result]))
    return branch(nodes, [result], "computed")


def _provided(rows: RowSelection) -> list[ir.Value]:
    return [*rows.outside.values(), *([rows.index] if rows.reads_index else [])]


def _gathered(rows: RowSelection, score: ir.Value, limit: ir.Value, axis: int) -> ir.Graph:
    """What the branch reads, for the positions that some row of the batch keeps."""
    nodes: list[ir.Node] = []
    _, anywhere = _kept(nodes, score, limit, axis)
    flat = _constant(nodes, np.array([-1], dtype=np.int64))
    index = _op(nodes, "Reshape", [_op(nodes, "NonZero", [anywhere]), flat])
    found = [_op(nodes, "Gather", [value, index], {"axis": at}) for value, at in rows.outside]
    return branch(nodes, [*found, *([index] if rows.reads_index else [])], "chosen_tokens")


def _as_they_are(rows: RowSelection, score: ir.Value, axis: int) -> ir.Graph:
    nodes: list[ir.Node] = []
    found = [value for value, _ in rows.outside]
    if rows.reads_index:
        shape = _op(nodes, "Shape", [score], {"start": axis, "end": axis + 1})
        scalar = _constant(nodes, np.zeros(0, dtype=np.int64))
        start, step = (_constant(nodes, np.array(number, dtype=np.int64)) for number in (0, 1))
        found.append(_op(nodes, "Range", [start, _op(nodes, "Reshape", [shape, scalar]), step]))
    return branch(nodes, found, "every_token")


def _put_back(
    chosen: ir.Value, value: ir.Value, stream: ir.Value | None, score: ir.Value, limit: ir.Value, axis: int
) -> ir.Graph:
    """The chosen positions' values in their places, for the rows of the batch that keep them."""
    nodes: list[ir.Node] = []
    kept, anywhere = _kept(nodes, score, limit, axis)
    first = _constant(nodes, np.array(0, dtype=np.int64))
    one = _constant(nodes, np.array(1, dtype=np.int32))
    place = _op(nodes, "Sub", [_op(nodes, "CumSum", [anywhere, first]), one])
    back = _op(nodes, "Gather", [chosen, place], {"axis": axis})
    if stream is not None:
        return branch(nodes, [_op(nodes, "Where", [kept, _sum(nodes, stream, back), stream])], "put_back")
    assert value.dtype is not None
    zero = _constant(nodes, np.zeros((), dtype=value.dtype.numpy()))
    return branch(nodes, [_op(nodes, "Where", [kept, back, zero])], "put_back")


def _whole(chosen: ir.Value, stream: ir.Value | None) -> ir.Graph:
    nodes: list[ir.Node] = []
    return branch(nodes, [_sum(nodes, stream, chosen)], "whole")


def _kept(nodes: list[ir.Node], score: ir.Value, limit: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Which tokens are kept [B, S, 1], NaN among them; and at which positions any is: int32 [S]."""
    kept = _op(nodes, "Not", [_op(nodes, "LessOrEqual", [score, limit])])
    others = _constant(nodes, np.array([each for each in range(axis + 2) if each != axis], dtype=np.int64))
    number = _op(nodes, "Cast", [kept], {"to": ir.DataType.INT32})
    return kept, _op(nodes, "ReduceMax", [number, others], {"keepdims": 0})


def _sum(nodes: list[ir.Node], stream: ir.Value | None, value: ir.Value) -> ir.Value:
    return value if stream is None else _op(nodes, "Add", [stream, value])


def _if(condition: ir.Value, then: ir.Graph, otherwise: ir.Graph, outputs: list[ir.Value]) -> ir.Node:
    attributes = [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", otherwise)]
    return ir.Node("", "If", [condition], attributes, outputs=outputs)


def _op(
    nodes: list[ir.Node], op_type: str, inputs: list[ir.Value | None] | list[ir.Value], attributes: dict | None = None
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes or {})
    nodes.append(node)
    return node.outputs[0]


def _constant(nodes: list[ir.Node], array: np.ndarray) -> ir.Value:
    return _op(nodes, "Constant", [], {"value": ir.tensor(array)})
