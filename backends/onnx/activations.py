"""The activations of MLPs (`srrc.ops.activation`) as ONNX nodes."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from srrc.backends.onnx.build import Nodes, constant, op


def _silu(nodes: Nodes, x: ir.Value) -> ir.Value:
    return op(nodes, "Mul", [x, op(nodes, "Sigmoid", [x])])


def _gelu(nodes: Nodes, x: ir.Value) -> ir.Value:
    return op(nodes, "Gelu", [x])


def _gelu_tanh(nodes: Nodes, x: ir.Value) -> ir.Value:
    return op(nodes, "Gelu", [x], {"approximate": "tanh"})


def _relu2(nodes: Nodes, x: ir.Value) -> ir.Value:
    positive = op(nodes, "Relu", [x])
    return op(nodes, "Mul", [positive, positive])


def _quick_gelu(nodes: Nodes, x: ir.Value) -> ir.Value:
    steep = op(nodes, "CastLike", [constant(nodes, 1.702, np.float32), x])
    return op(nodes, "Mul", [x, op(nodes, "Sigmoid", [op(nodes, "Mul", [steep, x])])])


def _simple(name: str) -> Callable[[Nodes, ir.Value], ir.Value]:
    return lambda nodes, x: op(nodes, name, [x])


ACTIVATIONS: Mapping[str, Callable[[Nodes, ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _simple("Relu"),
    "relu2": _relu2,
    "quick_gelu": _quick_gelu,
    "sigmoid": _simple("Sigmoid"),
    "tanh": _simple("Tanh"),
}
"""Name -> what puts it on a value."""
