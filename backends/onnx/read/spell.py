"""How torch spells the ONNX operators that finders look for: (function, arguments, keywords), or None.

None where an operator is used in a way that has no such spelling: ONNX Runtime computes it then.
"""

import operator
from collections.abc import Callable
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.nn import functional as F

Call = tuple[Callable[..., Any] | str, tuple[Any, ...], dict[str, Any]]
"""What is called: a function, or a method of the first argument by name."""


class Nodes(Protocol):
    """The graph being read (`mirror._Builder`)."""

    def node(self, value: ir.Value) -> fx.Node: ...  # noqa: D102
    def tensor(self, value: ir.Value) -> Tensor: ...  # noqa: D102
    def is_weight(self, value: ir.Value | None) -> bool: ...  # noqa: D102
    def number(self, value: ir.Value) -> Tensor | None: ...  # noqa: D102
    def turned(self, value: ir.Value) -> fx.Node: ...  # noqa: D102


Spelling = Callable[[Nodes, ir.Node], Call | None]


def _plain(function: Callable[..., Any]) -> Spelling:
    def spell(nodes: Nodes, node: ir.Node) -> Call | None:
        inputs = [each for each in node.inputs if each is not None]
        return function, tuple(_argument(nodes, each) for each in inputs), {}

    return spell


def _argument(nodes: Nodes, value: ir.Value) -> Any:
    """A node; a single number as a Python number, as torch's own graphs have it."""
    known = nodes.number(value)
    if known is not None and known.numel() == 1 and known.dim() == 0:
        return known.item()
    return nodes.node(value)


def _matmul(nodes: Nodes, node: ir.Node) -> Call | None:
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    if nodes.is_weight(weight) and nodes.tensor(weight).dim() == 2:
        return F.linear, (nodes.node(x), nodes.turned(weight), None), {}
    return torch.matmul, (nodes.node(x), nodes.node(weight)), {}


def _gemm(nodes: Nodes, node: ir.Node) -> Call | None:
    x, weight, bias = [*node.inputs, None][:3]
    assert x is not None
    assert weight is not None
    plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
    if not plain or node.attributes.get_int("transA", 0) == 1 or not nodes.is_weight(weight):
        return None
    if bias is not None and nodes.tensor(bias).dim() != 1:
        return None
    by_rows = node.attributes.get_int("transB", 0) == 1
    held = nodes.node(weight) if by_rows else nodes.turned(weight)
    return F.linear, (nodes.node(x), held, None if bias is None else nodes.node(bias)), {}


def _add(nodes: Nodes, node: ir.Node) -> Call | None:
    """A sum; or a linear with a bias, where it adds one to a linear without."""
    for one, other in (node.inputs, node.inputs[::-1]):
        if one is None or other is None or not nodes.is_weight(other) or nodes.number(one) is not None:
            continue
        made = nodes.node(one)
        alone = len(list(one.consumers())) == 1 and not one.is_graph_output()
        if made.target is F.linear and made.args[2] is None and nodes.tensor(other).dim() == 1 and alone:
            return F.linear, (made.args[0], made.args[1], nodes.node(other)), {}
    return _plain(operator.add)(nodes, node)


def _reshape(nodes: Nodes, node: ir.Node) -> Call | None:
    x, shape = node.inputs
    assert x is not None
    assert shape is not None
    known = nodes.number(shape)
    if known is None or (0 in map(int, known) and node.attributes.get_int("allowzero", 0) == 1):
        return None
    sizes = [int(size) or nodes.tensor(x).shape[at] for at, size in enumerate(known)]
    return "reshape", (nodes.node(x), *sizes), {}


def _transpose(nodes: Nodes, node: ir.Node) -> Call | None:
    (x,) = node.inputs
    assert x is not None
    perm = node.attributes.get_ints("perm", None)
    return None if perm is None else ("permute", (nodes.node(x), *perm), {})


def _softmax(nodes: Nodes, node: ir.Node) -> Call | None:
    (x,) = node.inputs
    assert x is not None
    return F.softmax, (nodes.node(x),), {"dim": node.attributes.get_int("axis", -1)}


def _attention(nodes: Nodes, node: ir.Node) -> Call | None:
    q, k, v, mask, *rest = [*node.inputs, None][: max(4, len(node.inputs))]
    assert q is not None and k is not None and v is not None  # noqa: PT018
    if any(each is not None for each in rest) or nodes.tensor(q).dim() != 4 or len(node.outputs) > 1:
        return None
    if node.attributes.get_float("softcap", 0.0) or node.attributes.get_int("is_causal", 0) == 1:
        return None
    scale = node.attributes.get_float("scale", None)
    keywords: dict[str, Any] = {"attn_mask": None if mask is None else nodes.node(mask), "scale": scale}
    if nodes.tensor(q).shape[1] != nodes.tensor(k).shape[1]:
        keywords["enable_gqa"] = True
    return F.scaled_dot_product_attention, (nodes.node(q), nodes.node(k), nodes.node(v)), keywords


def _gelu(nodes: Nodes, node: ir.Node) -> Call | None:
    (x,) = node.inputs
    assert x is not None
    return F.gelu, (nodes.node(x),), {"approximate": node.attributes.get_string("approximate", "none")}


SPELLINGS: dict[str, Spelling] = {
    "Add": _add,
    "Sub": _plain(operator.sub),
    "Mul": _plain(operator.mul),
    "Div": _plain(operator.truediv),
    "Pow": _plain(operator.pow),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Relu": _plain(F.relu),
    "Erf": _plain(torch.erf),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "Attention": _attention,
    "Gelu": _gelu,
}
