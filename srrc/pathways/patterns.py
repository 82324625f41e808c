"""Small questions about the shape of a canonical graph (after `passes.normalise`)."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

CANONICAL: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
    "matmul": torch.matmul,
    "linear": torch.nn.functional.linear,
    "sdpa": torch.nn.functional.scaled_dot_product_attention,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": torch.nn.functional.softmax,
}
"""The one spelling of each operator that `normalise` leaves, by the name finders use for it."""

CONTRACTIONS = frozenset({
    "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "einsum", "linear", "matmul", "mm",
    "scaled_dot_product_attention",
})  # fmt: skip
"""Names of the operators that multiply and sum: where nearly all of a model's work is."""

_VIEWS = frozenset(
    {"view", "reshape", "contiguous", "to", "type_as", "float", "unsqueeze", "squeeze", "flatten"}
)


def called_name(node: fx.Node) -> str:
    """Name of the function or method that `node` calls, without its module; empty for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def is_contraction(node: fx.Node) -> bool:
    """Whether `node` multiplies matrices, convolves or attends."""
    return called_name(node) in CONTRACTIONS or grouped_product(node) is not None


def is_call(node: object, name: str) -> bool:
    """Whether `node` calls the canonical operator `name`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is CANONICAL[name]


def is_method(node: object, *names: str) -> bool:
    """Whether `node` calls a tensor method of one of these names."""
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target in names


def argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:
    """An argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operands(node: object, name: str) -> tuple[Any, Any] | None:
    """Both arguments where `node` is the canonical binary operator `name`."""
    if isinstance(node, fx.Node) and is_call(node, name) and len(node.args) == 2 and not node.kwargs:
        return node.args[0], node.args[1]
    return None


def is_number(value: object) -> bool:
    """Whether `value` is a Python number, or a node that computes one (under `dynamic=True` constants do)."""
    if isinstance(value, fx.Node):
        return isinstance(value.meta.get("example_value"), int | float | torch.SymInt | torch.SymFloat)
    return isinstance(value, int | float)


def with_number(node: object, name: str) -> tuple[fx.Node, Any] | None:
    """(tensor, number) where `node` is the commutative operator `name` of a tensor and a number."""
    pair = operands(node, name)
    for value, number in (pair, pair[::-1]) if pair else ():
        if isinstance(value, fx.Node) and not is_number(value) and is_number(number):
            return value, number
    return None


def through_views(node: fx.Node) -> fx.Node:
    """The value that `node` is a reshaped or cast copy of, however often; `node` itself if it is none."""
    while is_method(node, *_VIEWS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def grouped_product(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x [T, K], weight [E, K, N]) where `node` multiplies each group of rows with its own matrix."""
    if node.op != "call_function" or "grouped_mm" not in str(node.target):
        return None
    x, weight = argument(node, 0, "input"), argument(node, 1, "mat2")
    return (x, weight) if isinstance(x, fx.Node) and isinstance(weight, fx.Node) else None
