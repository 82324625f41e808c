"""Reads a linear map off a node, whichever way the model wrote it."""

import torch
from torch import fx

from srrc.pathways.base import Cost, Linear
from srrc.pathways.graph_view import GraphView
from srrc.reasons import Reason, Refusal


def read_linear(view: GraphView, node: fx.Node) -> Linear | Refusal | None:
    """The linear map that `node` computes; a refusal where its weight is no parameter; None if it is none."""
    if node.op != "call_function" or node.target is not torch.nn.functional.linear:
        return None
    x, weight, bias = node.args
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node):
        return None
    if not view.is_parameter(weight) or not (bias is None or view.is_parameter(bias)):
        return Refusal(node.name, "channel", Reason.NOT_A_PARAMETER, f"weight {weight.name}")
    tensor = view.tensor(weight)
    if tensor is None or tensor.dim() != 2:
        return Refusal(view.fqn(weight), "channel", Reason.UNSUPPORTED_SHAPE, "the weight is no matrix")
    out_features, in_features = (int(extent) for extent in tensor.shape)
    bias_node = bias if isinstance(bias, fx.Node) else None
    return Linear(node, x, weight, bias_node, view.fqn(weight), in_features, out_features)


def linear_cost(view: GraphView, linears: tuple[Linear, ...], *, read_x: bool = True) -> Cost:
    """2 K N a row for each linear; weights, biases, outputs and (once for all, if `read_x`) the input in bytes."""
    flops = sum((2 * view.rows(n.x) * n.in_features * n.out_features for n in linears), start=0)
    moved = sum((_bytes(view, n) for n in linears), start=0)
    if read_x:
        moved += sum(view.nbytes(x) for x in {n.x for n in linears})
    return Cost(flops, moved)


def _bytes(view: GraphView, linear: Linear) -> int:
    weight = view.tensor(linear.weight)
    assert weight is not None
    bias = linear.out_features if linear.bias is not None else 0
    rows = view.rows(linear.x) * linear.out_features
    return weight.element_size() * (linear.in_features * linear.out_features + bias + rows)
