"""A branch and what stands in for it in one pass: each token's products by one of the two, the rest once for both.

    value = o(attention(q(x), k, v)),  other = o'(attention(q'(x), k, v))
    ->  queries = q of the kept tokens and q' of the others, in their places
        found = o and o' of attention(queries, k, v) alike

A product of no rows takes no time, so nothing here asks whether there are any.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from srrc.backends.onnx.build import Nodes, constant, op, zeros
from srrc.backends.onnx.gates.part import ROW_BY_ROW, Part
from srrc.backends.onnx.gates.token_choice import TokenChoice
from srrc.backends.onnx.regions import copy_nodes
from srrc.backends.onnx.select_rows import PRODUCTS


class NotAlikeError(Exception):
    """Two branches are not the same operators over the same values, but for the weights of their products."""


class Merge:
    """Builds, in `nodes`, one value of two: of `first` for the tokens that are kept, of `second` for the others.

    nodes:         what is built is appended here
    choice:        which tokens are kept
    like:          a value with a row for each token
    first, second: the two branches
    """

    def __init__(
        self,
        nodes: Nodes,
        choice: TokenChoice,
        like: ir.Value,
        first: Part,
        second: Part,
    ) -> None:
        self._nodes = nodes
        assert like.shape is not None
        self._like = like
        self._lengths = like.shape[:-1]
        self._parts = first, second
        self._inside = set(first.region), set(second.region)
        low = op(nodes, "Squeeze", [choice.low, constant(nodes, [-1], np.int64)])
        chosen = op(nodes, "Not", [low]), low
        self._places = [op(nodes, "Transpose", [op(nodes, "NonZero", [each])]) for each in chosen]
        self._both = op(nodes, "Concat", self._places, {"axis": 0})
        self._known: dict[tuple[ir.Value, ir.Value], ir.Value] = {}

    def both(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """The one value of the two, in their shape. Raises NotAlikeError where more than weights differ."""
        if first is second:
            return first
        if (first, second) not in self._known:
            nodes = first.producer(), second.producer()
            if any(node not in inside for node, inside in zip(nodes, self._inside, strict=True)):
                raise NotAlikeError
            if self._parts[0].rows.mixes(first) or self._parts[1].rows.mixes(second):
                raise NotAlikeError  # as keys that are of one kind for every query of that kind
            made = self._by_row(first, second) if _by_row(nodes[0]) else self._once(first, second)
            self._known[first, second] = made
        return self._known[first, second]

    def _once(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """An operator that mixes tokens, over the one value of each of its inputs."""
        node, twin = first.producer(), second.producer()
        assert node is not None
        assert twin is not None
        if _kind(node) != _kind(twin):
            raise NotAlikeError
        copies: dict[ir.Value, ir.Value] = {}
        for one, other in zip(node.inputs, twin.inputs, strict=True):
            if (one is None) != (other is None):
                raise NotAlikeError
            if one is not None and other is not None:
                copies[one] = self.both(one, other)
        self._nodes += copy_nodes([node], copies)
        return copies[first]

    def _by_row(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """All that is computed row by row up to a value, by one of the two for each row."""
        parts = [
            _rows_up_to(value, inside) for value, inside in zip((first, second), self._inside, strict=True)
        ]
        reads = [_read_from(part, inside) for part, inside in zip(parts, self._inside, strict=True)]
        if len(reads[0]) != len(reads[1]):
            raise NotAlikeError
        merged = [self.both(one, other) for one, other in zip(*reads, strict=True)]
        copies = [dict(zip(read, merged, strict=True)) for read in reads]
        if not any(node.op_type in PRODUCTS for part in parts for node in part):
            if not _same(parts[0], parts[1], dict(zip(*reads, strict=True))):
                raise NotAlikeError
            self._nodes += copy_nodes(parts[0], copies[0])
            return copies[0][first]
        if first.shape is None or first.shape[:-1] != self._lengths:
            raise NotAlikeError
        rows = []
        for value, part, known, places in zip((first, second), parts, copies, self._places, strict=True):
            for outside in _token_values(part, self._lengths):
                known[outside] = op(self._nodes, "GatherND", [known.get(outside, outside), places])
            made = copy_nodes(part, known)
            for out in (out for node in made for out in node.outputs):
                out.shape = None  # as many rows as there are tokens of the kind
            self._nodes += made
            rows.append(known[value])
        return self._put(rows, first)

    def _put(self, rows: Sequence[ir.Value], like: ir.Value) -> ir.Value:
        """Both kinds of rows in the places of their tokens."""
        same = (like.dtype, like.shape) == (self._like.dtype, self._like.shape)
        base = self._like if same else zeros(self._nodes, self._like, like)  # every row of it is written over
        put = op(self._nodes, "ScatterND", [base, self._both, op(self._nodes, "Concat", rows, {"axis": 0})])
        put.type, put.shape = like.type, like.shape
        return put


def _by_row(node: ir.Node | None) -> bool:
    if node is None or node.op_type not in ROW_BY_ROW or len(node.outputs) != 1:
        return False
    if node.op_type in PRODUCTS:
        weight = node.inputs[1]
        return weight is not None and weight.is_initializer() and node.attributes.get_int("transA", 0) == 0
    normalised = node.op_type in {"LayerNormalization", "RMSNormalization"}
    return not normalised or node.attributes.get_int("axis", -1) == -1


def _kind(node: ir.Node) -> tuple[object, ...]:
    attributes = sorted((name, repr(each.value)) for name, each in node.attributes.items())
    return node.domain, node.op_type, len(node.inputs), *attributes


def _same(part: Sequence[ir.Node], twin: Sequence[ir.Node], pairs: dict[ir.Value, ir.Value]) -> bool:
    """Whether two parts are the same operators over the same values. pairs: those of both that are one by now."""
    pairs = dict(pairs)
    for node, other in zip(part, twin, strict=False):
        read = zip(node.inputs, other.inputs, strict=False)
        if _kind(node) != _kind(other) or any(
            a is not b and (a is None or pairs.get(a) is not b) for a, b in read
        ):
            return False
        pairs |= zip(node.outputs, other.outputs, strict=True)
    return len(part) == len(twin)


def _rows_up_to(value: ir.Value, inside: set[ir.Node]) -> list[ir.Node]:
    """The nodes that compute `value` row by row, each before those that read it."""
    found: dict[ir.Node, None] = {}

    def visit(node: ir.Node | None) -> None:
        if node is None or node in found or node not in inside or not _by_row(node):
            return
        for each in node.inputs:
            visit(None if each is None else each.producer())
        found[node] = None

    visit(value.producer())
    return [*found]


def _read_from(part: Sequence[ir.Node], inside: set[ir.Node]) -> list[ir.Value]:
    """What `part` reads of the rest of its branch, in the order of reading."""
    read = (value for node in part for value in node.inputs if value is not None)
    return [
        *dict.fromkeys(each for each in read if each.producer() in inside and each.producer() not in part)
    ]


def _token_values(part: Sequence[ir.Node], tokens: Sequence[int | ir.SymbolicDim]) -> list[ir.Value]:
    """What `part` reads from outside that has a row for each token.

    Raises NotAlikeError where it reads something else that is neither a weight nor the same for all tokens.
    """
    found: dict[ir.Value, None] = {}
    for node in part:
        for at, value in enumerate(node.inputs):
            if value is None or value.producer() in part or (at > 0 and node.op_type in PRODUCTS):
                continue
            if value.shape is None or (len(value.shape) > 1 and value.shape[:-1] != tokens):
                raise NotAlikeError
            if len(value.shape) > 1:
                found[value] = None
    return [*found]
