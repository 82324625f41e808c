"""Makes in-place operators functional where nobody can tell: on a value that nothing else holds."""

import operator

import torch
from torch import fx
from torch.nn import functional

from srrc.pathways.effects import makes_fresh_storage
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import CANONICAL

_BINARY: dict[object, str] = {
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.itruediv: "div",
    "__iadd__": "add",
    "__isub__": "sub",
    "__imul__": "mul",
    "__itruediv__": "div",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
}
_UNARY: dict[object, str] = {
    torch.relu_: "relu",
    torch.sigmoid_: "sigmoid",
    torch.tanh_: "tanh",
    "relu_": "relu",
    "sigmoid_": "sigmoid",
    "tanh_": "tanh",
}
_INPLACE_OPTION: dict[object, str] = {functional.relu: "relu", functional.silu: "silu"}


def make_functional(view: GraphView) -> int:
    """Replace in-place operators on values that are fresh and read by nothing else. Returns how many."""
    return sum(_replace(view, node) for node in view.nodes if node.op in {"call_function", "call_method"})


def _replace(view: GraphView, node: fx.Node) -> bool:
    x = node.args[0] if node.args else None
    name = _functional_name(view, node)
    if name is None or not isinstance(x, fx.Node) or len(x.users) != 1:
        return False
    # Fresh and dense, so that the functional operator gives the same strides as the value had.
    if not makes_fresh_storage(x) or not view.is_contiguous(x):
        return False
    arguments = node.args if node.target in _BINARY else (x,)
    node.op, node.target, node.args, node.kwargs = "call_function", CANONICAL[name], arguments, {}
    return True


def _functional_name(view: GraphView, node: fx.Node) -> str | None:
    if node.target in _INPLACE_OPTION:
        asked = (node.args[1:], node.kwargs) in (((), {"inplace": True}), ((True,), {}))
        return _INPLACE_OPTION[node.target] if asked else None
    if node.kwargs:
        return None
    if node.target in _BINARY and len(node.args) == 2 and _same_type(view, *node.args):
        return _BINARY[node.target]
    return _UNARY.get(node.target) if len(node.args) == 1 else None


def _same_type(view: GraphView, x: object, other: object) -> bool:
    """Whether combining `x` with `other` gives the dtype of `x`, which is what in-place arithmetic keeps."""
    left, right = view.tensor(x), view.tensor(other)
    if left is None:
        return False
    if right is not None:
        return right.dtype == left.dtype
    return isinstance(other, int | float) and left.is_floating_point()
