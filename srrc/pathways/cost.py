"""Costs of single nodes and of regions, over the symbols of the graph.

FLOPs are those of contractions (linears, matrix products, attention, convolutions). A multiply-add counts as
two and a causal mask as nothing saved, which is how torch's own FlopCounterMode counts. Pointwise work counts
as fused into them: it costs neither FLOPs nor bytes here.
"""

from collections.abc import Iterable

import sympy
from torch import fx

from srrc.pathways.base import ZERO_COST, Cost, Linear
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import argument, grouped_product, is_call

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def node_cost(view: GraphView, node: fx.Node) -> Cost:
    """Cost of one node; zero for anything but a contraction."""
    product = grouped_product(node)
    if product is not None:
        return _grouped(view, node, *product)
    operands = [a for a in node.all_input_nodes if view.tensor(a) is not None]
    if view.tensor(node) is None or len(operands) < 2:
        return ZERO_COST
    name = getattr(node.target, "__name__", "")
    if is_call(node, "sdpa"):
        return _attention(view, node)
    if is_call(node, "linear") or is_call(node, "matmul") or name in {"bmm", "mm"}:
        depth = view.shape(node.args[0])[-1]
    elif name == "addmm":
        depth = view.shape(node.args[1])[-1]
    elif node.op == "call_function" and name in _CONVOLUTIONS:
        kernel = argument(node, 1, "weight")
        depth = view.numel(kernel) / view.shape(kernel)[0] if isinstance(kernel, fx.Node) else 0
    else:
        return ZERO_COST
    moved = sum((view.nbytes(a) for a in operands), start=view.nbytes(node))
    return Cost(sympy.expand(2 * view.numel(node) * depth), sympy.expand(moved))


def region_cost(view: GraphView, nodes: Iterable[fx.Node]) -> Cost:
    """Summed cost of `nodes`."""
    return sum((node_cost(view, node) for node in nodes), start=ZERO_COST)


def linear_cost(view: GraphView, linears: tuple[Linear, ...]) -> Cost:
    """2 K N a row for each linear; in bytes the weights, biases and outputs, and each distinct input once."""
    flops, moved = sympy.Integer(0), sympy.Integer(0)
    for linear in linears:
        weight = view.tensor(linear.weight)
        assert weight is not None
        rows = view.rows(linear.x)
        flops += 2 * rows * linear.in_features * linear.out_features
        parameters = linear.out_features * (linear.in_features + (linear.bias is not None))
        moved += weight.element_size() * (parameters + rows * linear.out_features)
    moved += sum(view.nbytes(x) for x in {linear.x for linear in linears})
    return Cost(sympy.expand(flops), sympy.expand(moved))


def attention_cost(view: GraphView, q: fx.Node, k: fx.Node, v: fx.Node) -> Cost:
    """Scores and weighted sum of q [B, H, Q, D] over k, v [B, Hkv, S, D]: 2 B H Q S (D + Dv)."""
    *lead, queries, depth = view.shape(q)
    keys, width = view.shape(v)[-2:]
    pairs = sympy.prod(lead) * queries * keys
    tensor = view.tensor(q)
    out = sympy.prod(lead) * queries * width * (tensor.element_size() if tensor is not None else 0)
    moved = view.nbytes(q) + view.nbytes(k) + view.nbytes(v) + out
    return Cost(sympy.expand(2 * pairs * (depth + width)), sympy.expand(moved))


def _attention(view: GraphView, node: fx.Node) -> Cost:
    q, k, v = (argument(node, index, name) for index, name in enumerate(("query", "key", "value")))
    if not all(isinstance(each, fx.Node) for each in (q, k, v)):
        return ZERO_COST
    return attention_cost(view, q, k, v)


def _grouped(view: GraphView, node: fx.Node, x: fx.Node, weight: fx.Node) -> Cost:
    experts = view.shape(weight)[0]
    read = view.nbytes(weight) / experts * sympy.Min(experts, view.rows(x))
    flops = 2 * view.numel(node) * view.shape(x)[-1]
    return Cost(sympy.expand(flops), sympy.expand(read + view.nbytes(x) + view.nbytes(node)))
