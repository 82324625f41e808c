"""Which tokens a gate keeps, as ONNX nodes: the score, the questions asked of it, tokens taken out and put back.

The score of a token is exp(probe[:H] . entry / rms(entry) + probe[H]) (`srrc.ops.layer_gate`), compared as a logarithm.
Tokens are chosen by position: a position is computed where any row of the batch keeps it, and each row takes its own.
Every node here runs even where the gate is open, in a microsecond or two: there are as few as can be.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from srrc.backends.onnx.build import Nodes, choose, constant, op
from srrc.backends.onnx.select_rows import RowSelection

Branch = tuple[Nodes, list[ir.Value]]
"""Of an `If`: its nodes, and what it gives."""


@dataclass(frozen=True, eq=False)
class TokenChoice:
    """The decision of one gate.

    low:     bool [..., S, 1], which tokens are dropped: those whose score is at most the limit, so that NaN is kept
    dropped: bool, whether any is
    axis:    that of the positions
    """

    low: ir.Value
    dropped: ir.Value
    axis: int

    def nothing(self, nodes: Nodes) -> ir.Value:
        """Bool: whether every token is dropped."""
        return op(nodes, "ReduceMin", [self.low], {"keepdims": 0})

    def kept(self, nodes: Nodes) -> ir.Value:
        """Bool [..., S, 1]."""
        return op(nodes, "Not", [self.low])

    def anywhere(self, nodes: Nodes, chosen: ir.Value) -> ir.Value:
        """Bool [S]: at which positions a row of the batch is `chosen`."""
        others = constant(nodes, [each for each in range(self.axis + 2) if each != self.axis], np.int64)
        return op(nodes, "ReduceMax", [chosen, others], {"keepdims": 0})

    def take_kept(self, nodes: Nodes, rows: RowSelection) -> None:
        """Provide what `rows` reads from outside, for the tokens that are kept."""
        if len(rows.outside) == 1 and not rows.reads_index:  # to copy all of it costs less than an `If`
            ((value, axis),) = rows.outside
            chosen = self.anywhere(nodes, self.kept(nodes))
            made = rows.outside[value, axis]
            nodes.append(
                ir.Node("", "Compress", [value, chosen], [ir.AttrInt64("axis", axis)], outputs=[made])
            )
            return
        some, every = self._two_ways(rows, kept=True)
        choose(nodes, self.dropped, some, every, _outputs(rows), ("some_tokens", "every_token"))

    def take_dropped(self, nodes: Nodes, rows: RowSelection, nothing: ir.Value) -> None:
        """Provide what `rows` reads from outside, for the tokens that are not. nothing: whether that is all of them."""
        some, every = self._two_ways(rows, kept=False)
        choose(nodes, nothing, every, some, _outputs(rows), ("every_token", "some_tokens"))

    def _two_ways(self, rows: RowSelection, *, kept: bool) -> tuple[Branch, Branch]:
        """What `rows` reads from outside: for the tokens that are kept, or those that are not; and for every token."""
        some: Nodes = []
        found = self._taken(some, rows, self.kept(some) if kept else self.low)
        whole: Nodes = []
        return (some, found), (whole, self._untouched(whole, rows))

    def _taken(self, nodes: Nodes, rows: RowSelection, chosen: ir.Value) -> list[ir.Value]:
        index = op(nodes, "NonZero", [self.anywhere(nodes, chosen)])
        index = op(nodes, "Reshape", [index, constant(nodes, [-1], np.int64)])
        found = [op(nodes, "Gather", [value, index], {"axis": at}) for value, at in rows.outside]
        return [*found, *([index] if rows.reads_index else [])]

    def _untouched(self, nodes: Nodes, rows: RowSelection) -> list[ir.Value]:
        """What is read from outside, for every token."""
        found = [value for value, _ in rows.outside]
        return [*found, *([self._every_position(nodes)] if rows.reads_index else [])]

    def _every_position(self, nodes: Nodes) -> ir.Value:
        shape = op(nodes, "Shape", [self.low], {"start": self.axis, "end": self.axis + 1})
        length = op(nodes, "Reshape", [shape, constant(nodes, [], np.int64)])
        return op(nodes, "Range", [constant(nodes, 0, np.int64), length, constant(nodes, 1, np.int64)])

    def back(self, nodes: Nodes, value: ir.Value, chosen: ir.Value) -> ir.Value:
        """`value`, computed for the positions where any row is `chosen`, at all positions; elsewhere it is anything."""
        ones = op(nodes, "Cast", [self.anywhere(nodes, chosen)], {"to": ir.DataType.INT32})
        before = op(nodes, "CumSum", [ones, constant(nodes, 0, np.int64)])
        place = op(nodes, "Sub", [before, constant(nodes, 1, np.int32)])
        return op(nodes, "Gather", [value, place], {"axis": self.axis})


def _outputs(rows: RowSelection) -> list[ir.Value]:
    return [*rows.outside.values(), *([rows.index] if rows.reads_index else [])]


def biases_of(probes: ir.Value | None) -> NDArray[np.float32]:
    """The bias of each unit's probe: float32 [units]."""
    return _numbers(probes)[:, -1]


def _numbers(probes: ir.Value | None) -> NDArray[np.float32]:
    assert probes is not None
    weights = ir.convenience.get_const_tensor(probes)
    assert weights is not None
    return np.atleast_2d(weights.numpy().astype(np.float32))


def token_choices(
    nodes: Nodes,
    node: ir.Node,
    entry: ir.Value | None,
    probes: ir.Value | None,
    limit: ir.Value,
    axis: int,
) -> list[TokenChoice]:
    """One decision for each of a gate's units, over the same tokens.

    node:   the gate; entry: [..., H], what it reads; probes: [units, H + 1], or [H + 1] for one
    limit:  float32 [units], logarithm of the threshold less the unit's bias
    """
    assert entry is not None
    directions = _numbers(probes)[:, :-1].T
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
    low = op(nodes, "LessOrEqual", [score, limit])
    tokens = constant(nodes, [*range(axis + 1)], np.int64)
    dropped = op(nodes, "ReduceMax", [low, tokens], {"keepdims": 0})
    units = directions.shape[1]
    apart = zip(_units(nodes, low, units), _units(nodes, dropped, units), strict=True)
    return [TokenChoice(each, some, axis) for each, some in apart]


def _units(nodes: Nodes, value: ir.Value, count: int) -> list[ir.Value]:
    """`value` [..., count] as one value [..., 1] for each unit."""
    if count == 1:
        return [value]
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", count)]
    cut = ir.Node("", "Split", [value], attributes, num_outputs=count)
    nodes.append(cut)
    return [*cut.outputs]


def _norm_of(entry: ir.Value, node: ir.Node) -> tuple[ir.Value, NDArray[np.float32]] | None:
    """An RMS norm of `entry` that the graph computes before `node` anyway, and its scale."""
    users = {
        user for user in entry.consumers() if user.op_type == "RMSNormalization" and user.inputs[0] is entry
    }
    for user in itertools.takewhile(lambda each: each is not node, node.graph or ()):
        held = user.inputs[1] if user in users else None
        scale = None if held is None else ir.convenience.get_const_tensor(held)
        if scale is not None and np.all(
            np.abs(scale.numpy().astype(np.float32)) > _smallest(user.outputs[0])
        ):
            return user.outputs[0], scale.numpy().astype(np.float32)
    return None


def _smallest(normed: ir.Value) -> float:
    """The smallest scale that can be divided out of a norm's output again: above it nothing is lost to underflow."""
    return 1e-20 if normed.dtype == ir.DataType.FLOAT else 1e-3
