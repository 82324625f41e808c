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


def is_call(node: object, name: str) -> bool:
    """Whether `node` calls the canonical operator `name`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is CANONICAL[name]


def is_method(node: object, name: str) -> bool:
    """Whether `node` calls the tensor method `name`."""
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target == name
