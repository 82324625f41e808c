"""Computes a value for some positions of one axis only: what a token gate leaves out is never computed.

Selecting positions is moved up from the value through every operator that treats the positions of that axis alike, and
made where it can go no further: at keys and values, which every query reads whole, at what the region reads from
outside, at operators that are not known. Where it stands does not change the result, only what it costs.
"""

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from srrc.backends.onnx.regions import copy_nodes

Axes = Sequence[int | None] | None
"""For each input the axis along which it is selected, None for whole; None for an operator that mixes positions."""

ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "QuickGelu", "Reciprocal", "Relu", "Sigmoid", "Sign",
    "Sin", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
})  # fmt: skip

PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulNBits"})


class RowSelection:
    """Builds, in `nodes`, values of a region for some positions of one axis.

    region:  the nodes that may be computed anew; everything else is read as it is, from outside
    outside: (value from outside, axis) -> what stands for its chosen positions; whoever places `nodes` provides it
    index:   int64 [n], the chosen positions; to be provided where `reads_index`
    contractions: how many products are computed for the chosen positions only
    """

    def __init__(self, region: Collection[ir.Node]) -> None:
        self.nodes: list[ir.Node] = []
        self.outside: dict[tuple[ir.Value, int], ir.Value] = {}
        self.index = ir.val("chosen", ir.DataType.INT64)
        self.reads_index = False
        self.contractions = 0
        self._region = region
        self._whole: dict[ir.Value, ir.Value] = {}
        self._some: dict[tuple[ir.Value, int], ir.Value] = {}

    def some(self, value: ir.Value, axis: int) -> ir.Value:
        """`value` for the chosen positions of `axis` (counted from the front)."""
        known = self._some.get((value, axis))
        if known is not None:
            return known
        node = value.producer()
        if node is None or node not in self._region:
            made = ir.val("some", value.dtype)
            self.outside[value, axis] = self._some[value, axis] = made
            return made
        axes = input_axes(node, axis)
        if axes is None:
            self._some[value, axis] = self._gather(value, axis)
            return self._some[value, axis]
        inputs = [
            each if each is None else self.whole(each) if at is None else self.some(each, at)
            for each, at in zip(node.inputs, axes, strict=True)
        ]
        self.contractions += node.op_type in PRODUCTS | {"Attention"}
        outputs = self._copy(node, inputs)
        self._some.update({(old, axis): new for old, new in zip(node.outputs, outputs, strict=True)})
        return self._some[value, axis]

    def mixes(self, value: ir.Value) -> bool:
        """Whether `value` is computed in the region and read there for all positions, whichever are chosen."""
        return value in self._whole

    def whole(self, value: ir.Value) -> ir.Value:
        """`value` for all positions: computed in here where the region computes it."""
        node = value.producer()
        if node is None or node not in self._region:
            return value
        if value not in self._whole:
            copies = {each: self.whole(each) for each in node.inputs if each is not None}
            self.nodes += copy_nodes([node], copies)
            self._whole.update({out: copies[out] for out in node.outputs})
        return self._whole[value]

    def _gather(self, value: ir.Value, axis: int) -> ir.Value:
        node = ir.node("Gather", [self.whole(value), self.index], {"axis": axis})
        self.reads_index = True
        self.nodes.append(node)
        node.outputs[0].type = value.type
        return node.outputs[0]

    def _copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        (made,) = copy_nodes([node], {})
        for at, new in enumerate(inputs):
            made.replace_input_with(at, new)
        for out in made.outputs:
            out.shape = None  # as many positions as are chosen
        self.nodes.append(made)
        return made.outputs


def input_axes(node: ir.Node, axis: int) -> Axes:
    """Along which axis each input of `node` is to be selected so that its output is selected along `axis`."""
    if node.domain not in {"", "ai.onnx", "com.microsoft"}:
        return None
    if node.op_type in ELEMENTWISE:
        return _elementwise(node, axis)
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(node, axis)


def _elementwise(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.outputs[0])
    if rank is None:
        return None
    found: list[int | None] = []
    for value in node.inputs:
        if value is None:
            found.append(None)
            continue
        own = _rank(value)
        if own is None:
            return None
        at = axis - (rank - own)
        found.append(at if at >= 0 and value.shape is not None and value.shape[at] != 1 else None)
    return found


def _matmul(node: ir.Node, axis: int) -> Axes:
    left, right, out = (_rank(value) for value in (*node.inputs, node.outputs[0]))
    if left is None or right is None or left != out or right < 2 or axis >= left - 1:
        return None
    if axis < left - 2 and right > 2:
        return None  # a batch of matrices along that axis
    return [axis, None]


def _matmul_nbits(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    return None if rank is None or axis >= rank - 1 else [axis] + [None] * (len(node.inputs) - 1)


def _gemm(node: ir.Node, axis: int) -> Axes:
    if axis != 0 or node.attributes.get_int("transA", 0) == 1:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and _rank(bias) != 1:
        return None
    return [0] + [None] * (len(node.inputs) - 1)


def _norm(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    first = node.attributes.get_int("axis", -1)
    if rank is None or axis >= first % rank or len(node.outputs) != 1:
        return None
    return [axis] + [None] * (len(node.inputs) - 1)


def _softmax(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    return None if rank is None or node.attributes.get_int("axis", -1) % rank == axis else [axis]


def _transpose(node: ir.Node, axis: int) -> Axes:
    perm = node.attributes.get_ints("perm", None)
    return None if perm is None else [perm[axis]]


def _reshape(node: ir.Node, axis: int) -> Axes:
    target = constant(node.inputs[1])
    if target is None or node.attributes.get_int("allowzero", 0) == 1 or any(target[: axis + 1]):
        return None
    return [axis, None]


def _reduce(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if rank is None or axes is None or not node.attributes.get_int("keepdims", 1):
        return None
    return None if axis in [each % rank for each in axes] else [axis, None]


def _rotary(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    if len(node.inputs) != 3 or rank is None or axis != (2 if rank == 4 else 1):
        return None
    return [axis, 1, 1]


def _attention(node: ir.Node, axis: int) -> Axes:
    """Queries and the mask's rows are selected; keys and values are read whole."""
    rank = _rank(node.inputs[0])
    if rank is None or axis != (2 if rank == 4 else 1) or node.attributes.get_int("is_causal", 0) == 1:
        return None
    inputs = [*node.inputs, None, None, None][: max(4, len(node.inputs))]
    mask, past = inputs[3], inputs[4:]
    if any(each is not None for each in past) or len(node.outputs) != 1:
        return None
    found: list[int | None] = [axis, None, None]
    if len(node.inputs) > 3:
        own = None if mask is None else _rank(mask)
        if mask is not None and (own is None or mask.shape is None):
            return None
        rows = None if own is None else own - 2
        found.append(
            None if rows is None or mask is None or mask.shape is None or mask.shape[rows] == 1 else rows
        )
        found += [None] * (len(node.inputs) - 4)
    return found


def _slice(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if rank is None or axes is None or axis in [each % rank for each in axes]:
        return None
    return [axis] + [None] * (len(node.inputs) - 1)


def _split(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.inputs[0])
    if rank is None or node.attributes.get_int("axis", 0) % rank == axis:
        return None
    return [axis] + [None] * (len(node.inputs) - 1)


def _concat(node: ir.Node, axis: int) -> Axes:
    rank = _rank(node.outputs[0])
    if rank is None or node.attributes.get_int("axis", 0) % rank == axis:
        return None
    return [axis] * len(node.inputs)


_RULES: dict[str, Callable[[ir.Node, int], Axes]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LayerNormalization": _norm,
    "RMSNormalization": _norm,
    "Softmax": _softmax,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "RotaryEmbedding": _rotary,
    "Attention": _attention,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "MatMulNBits": _matmul_nbits,
}


def constant(value: ir.Value | None) -> list[int] | None:
    """The whole numbers of an initializer or a `Constant`; None for what is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(each) for each in tensor.numpy().reshape(-1)]


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
