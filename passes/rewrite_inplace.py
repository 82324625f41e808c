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
    """Replace in-place operators whose operand is fresh and read by nothing else. Returns the number replaced."""
    return sum(_replace(view, node) for node in view.nodes if node.op in {"call_function", "call_method"})


def _replace(view: GraphView, node: fx.Node) -> bool:
    x = node.args[0] if node.args else None
    if (
        not isinstance(x, fx.Node)
        or len(x.users) != 1
        or not makes_fresh_storage(x)
        or not view.is_contiguous(x)
    ):
        return False
    if (
        node.target in _BINARY
        and len(node.args) == 2
        and not node.kwargs
        and _same_type(view, x, node.args[1])
    ):
        name, arguments = _BINARY[node.target], node.args
    elif node.target in _UNARY and len(node.args) == 1 and not node.kwargs:
        name, arguments = _UNARY[node.target], node.args
    elif node.target in _INPLACE_OPTION and (node.args[1:], node.kwargs) in (
        ((), {"inplace": True}),
        ((True,), {}),
    ):
        name, arguments = _INPLACE_OPTION[node.target], (x,)
    else:
        return False
    node.op, node.target, node.args, node.kwargs = "call_function", CANONICAL[name], arguments, {}
    return True


def _same_type(view: GraphView, x: fx.Node, other: object) -> bool:
    """Whether combining `x` with `other` gives the dtype of `x`, which is what in-place arithmetic keeps."""
    left, right = view.tensor(x), view.tensor(other)
    if left is None:
        return False
    if right is not None:
        return right.dtype == left.dtype
    return isinstance(other, int | float) and left.is_floating_point()
