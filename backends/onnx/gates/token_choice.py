"""Which tokens a gate keeps, as ONNX nodes: the score, the questions asked of it, tokens taken out and put back.

The score of a token is exp(probe[:H] . entry / rms(entry) + probe[H]) (`srrc.ops.layer_gate`), compared as a logarithm.
Tokens are chosen by position: a position is computed where any row of the batch keeps it, and each row takes its own.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from srrc.backends.onnx.build import Nodes, choose, constant, op
from srrc.backends.onnx.select_rows import RowSelection


@dataclass(frozen=True, eq=False)
class TokenChoice:
    """The decision of one gate.

    score:   float32 [..., S, 1]; limit: float32 [1], a token is dropped where its score is at most the limit
    nothing: bool, no token is kept; dropped: bool, some token is not
    axis:    that of the positions
    """

    score: ir.Value
    limit: ir.Value
    nothing: ir.Value
    dropped: ir.Value
    axis: int

    def kept(self, nodes: Nodes) -> ir.Value:
        """Bool [..., S, 1]; what is NaN is kept."""
        return op(nodes, "Not", [op(nodes, "LessOrEqual", [self.score, self.limit])])

    def anywhere(self, nodes: Nodes, chosen: ir.Value) -> ir.Value:
        """int32 [S]: 1 at positions where a row of the batch is `chosen`."""
        others = constant(nodes, [each for each in range(self.axis + 2) if each != self.axis], np.int64)
        number = op(nodes, "Cast", [chosen], {"to": ir.DataType.INT32})
        return op(nodes, "ReduceMax", [number, others], {"keepdims": 0})

    def take(self, nodes: Nodes, rows: RowSelection, all_taken: ir.Value, *, kept: bool) -> None:
        """Provide what `rows` reads from outside, for the tokens that are kept, or for those that are not.

        all_taken: bool, whether that is every token: then nothing is moved
        """
        some: Nodes = []
        chosen = self.kept(some) if kept else op(some, "LessOrEqual", [self.score, self.limit])
        index = op(some, "NonZero", [self.anywhere(some, chosen)])
        index = op(some, "Reshape", [index, constant(some, [-1], np.int64)])
        found = [op(some, "Gather", [value, index], {"axis": at}) for value, at in rows.outside]
        whole: Nodes = []
        as_it_is = [value for value, _ in rows.outside]
        outputs = [*rows.outside.values()]
        if rows.reads_index:
            found.append(index)
            as_it_is.append(self._every_position(whole))
            outputs.append(rows.index)
        choose(nodes, all_taken, (whole, as_it_is), (some, found), outputs, ("every_token", "some_tokens"))

    def _every_position(self, nodes: Nodes) -> ir.Value:
        shape = op(nodes, "Shape", [self.score], {"start": self.axis, "end": self.axis + 1})
        length = op(nodes, "Reshape", [shape, constant(nodes, [], np.int64)])
        return op(nodes, "Range", [constant(nodes, 0, np.int64), length, constant(nodes, 1, np.int64)])

    def back(self, nodes: Nodes, value: ir.Value, chosen: ir.Value) -> ir.Value:
        """`value`, computed for the positions where any row is `chosen`, at all positions; elsewhere it is anything."""
        before = op(nodes, "CumSum", [self.anywhere(nodes, chosen), constant(nodes, 0, np.int64)])
        place = op(nodes, "Sub", [before, constant(nodes, 1, np.int32)])
        return op(nodes, "Gather", [value, place], {"axis": self.axis})


def token_choice(nodes: Nodes, node: ir.Node, threshold: ir.Value, axis: int) -> TokenChoice:
    """The decision of a gate `node`, whose inputs begin with entry [..., H] and probe [H + 1]. threshold: [1]."""
    entry, probe = node.inputs[:2]
    (choice,) = token_choices(nodes, node, entry, probe, threshold, axis)
    return choice


def token_choices(
    nodes: Nodes,
    node: ir.Node,
    entry: ir.Value | None,
    probes: ir.Value | None,
    threshold: ir.Value,
    axis: int,
) -> list[TokenChoice]:
    """One decision for each of several units over the same tokens. probes: [units, H + 1], or [H + 1] for one."""
    assert entry is not None
    assert probes is not None
    weights = ir.convenience.get_const_tensor(probes)
    assert weights is not None
    numbers = np.atleast_2d(weights.numpy().astype(np.float32))
    directions, bias = numbers[:, :-1].T, numbers[:, -1]
    norm = _norm_of(entry, node)
    if norm is None:
        wide = (
            entry
            if entry.dtype == ir.DataType.FLOAT
            else op(nodes, "Cast", [entry], {"to": ir.DataType.FLOAT})
        )
        ones = constant(nodes, np.ones(len(directions)), np.float32)
        normed = op(nodes, "RMSNormalization", [wide, ones], {"epsilon": 0.0, "axis": -1})
    else:
        normed, scale = norm
        directions = directions / scale[:, None]
        if normed.dtype != ir.DataType.FLOAT:
            normed = op(nodes, "Cast", [normed], {"to": ir.DataType.FLOAT})
    score = op(nodes, "MatMul", [normed, constant(nodes, directions, np.float32)])
    limit = op(nodes, "Sub", [op(nodes, "Log", [threshold]), constant(nodes, bias, np.float32)])
    tokens = constant(nodes, [*range(axis + 1)], np.int64)
    highest = op(nodes, "ReduceMax", [score, tokens], {"keepdims": 0})
    lowest = op(nodes, "ReduceMin", [score, tokens], {"keepdims": 0})
    nothing, dropped = (op(nodes, "LessOrEqual", [each, limit]) for each in (highest, lowest))
    apart = [_units(nodes, each, len(numbers)) for each in (score, limit, nothing, dropped)]
    return [
        TokenChoice(unit, bound, none, some, axis) for unit, bound, none, some in zip(*apart, strict=True)
    ]


def _units(nodes: Nodes, value: ir.Value, count: int) -> list[ir.Value]:
    """`value` [..., count] as one value [..., 1] for each unit."""
    if count == 1:
        return [value]
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", count)]
    cut = ir.Node("", "Split", [value], attributes, num_outputs=count)
    nodes.append(cut)
    return [*cut.outputs]


def _norm_of(
    entry: ir.Value, node: ir.Node
) -> tuple[ir.Value, "np.ndarray[tuple[int], np.dtype[np.float32]]"] | None:
    """An RMS norm of `entry` that the graph computes before `node` anyway, and its scale."""
    users = {
        user for user in entry.consumers() if user.op_type == "RMSNormalization" and user.inputs[0] is entry
    }
    for user in itertools.takewhile(lambda each: each is not node, node.graph or ()):
        held = user.inputs[1] if user in users else None
        scale = None if held is None else ir.convenience.get_const_tensor(held)
        if scale is not None and np.all(np.abs(scale.numpy().astype(np.float32)) > 1e-3):
            return user.outputs[0], scale.numpy().astype(np.float32)
    return None
