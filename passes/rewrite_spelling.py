"""One spelling for each operator: `x.mul(y)`, `torch.mul(x, y)` and `x * y` all become `operator.mul`."""

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import CANONICAL

_BINARY: dict[object, str] = {
    torch.add: "add",
    torch.sub: "sub",
    torch.subtract: "sub",
    torch.mul: "mul",
    torch.multiply: "mul",
    torch.div: "div",
    torch.true_divide: "div",
    torch.divide: "div",
    torch.pow: "pow",
    torch.matmul: "matmul",
    operator.matmul: "matmul",
    "add": "add",
    "sub": "sub",
    "subtract": "sub",
    "mul": "mul",
    "multiply": "mul",
    "div": "div",
    "true_divide": "div",
    "divide": "div",
    "pow": "pow",
    "matmul": "matmul",
    "__matmul__": "matmul",
}
_UNARY: dict[object, str] = {
    torch.neg: "neg",
    torch.negative: "neg",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    torch.relu: "relu",
    functional.relu: "relu",
    functional.silu: "silu",
    "neg": "neg",
    "negative": "neg",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
}
_SOFTMAX = (torch.softmax, "softmax")
_SQUARE = (torch.square, "square")


def unify_spelling(view: GraphView) -> int:
    """Respell every operator that has a canonical form. Returns the number of nodes changed."""
    return sum(_respell(view, node) for node in view.nodes if node.op in {"call_function", "call_method"})


def _respell(view: GraphView, node: fx.Node) -> bool:
    # A number on the left would take another path (`2 / x` is a reciprocal), so only tensors stand there.
    if not node.args or view.tensor(node.args[0]) is None:
        return False
    arguments, options = node.args, dict(node.kwargs)
    if node.target in _BINARY and len(arguments) == 2 and not options:
        return _become(node, _BINARY[node.target], arguments, {})
    if node.target in _UNARY and _plain(arguments, options):
        return _become(node, _UNARY[node.target], arguments[:1], {})
    if node.target in _SQUARE and len(arguments) == 1 and not options:
        return _become(node, "pow", (arguments[0], 2), {})
    if node.target in _SOFTMAX:
        names = dict(zip(("dim", "dtype"), arguments[1:], strict=False)) | options
        return names.keys() <= {"dim", "dtype"} and _become(node, "softmax", arguments[:1], names)
    return False


def _plain(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Nothing is asked beside the tensor, save an `inplace` that is off."""
    return (len(arguments) == 1 or arguments[1:] == (False,)) and options in ({}, {"inplace": False})


def _become(node: fx.Node, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    target = CANONICAL[name]
    if node.op == "call_function" and (node.target, node.args, node.kwargs) == (target, arguments, options):
        return False
    node.op, node.target, node.args, node.kwargs = "call_function", target, arguments, options
    return True
