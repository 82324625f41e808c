"""What the gated and the dense ops share when they take the place of linears: weights as [N, K], results apart."""

import operator

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.emit import REPLACED_BY, emit, value_of
from srrc.pathways.base import Linear
from srrc.pathways.neuron import Mlp


def weight_of(graph: fx.Graph, linear: Linear, fake_mode: FakeTensorMode) -> fx.Node:
    """The weight as [N, K], whichever way the model holds it: a view, never a copy."""
    weight = linear.weight
    if linear.transposed:
        weight = emit(graph, torch.ops.aten.t.default, (weight,), fake_mode)
    if linear.rows is not None:
        start, end = linear.rows
        weight = emit(graph, torch.ops.aten.slice.Tensor, (weight, 0, start, end), fake_mode)
    return weight


def bias_of(graph: fx.Graph, linear: Linear, fake_mode: FakeTensorMode) -> fx.Node | None:
    """The bias [N], or None."""
    if linear.bias is None or linear.rows is None:
        return linear.bias
    start, end = linear.rows
    return emit(graph, torch.ops.aten.slice.Tensor, (linear.bias, 0, start, end), fake_mode)


def mlp_arguments(graph: fx.Graph, site: Mlp, fake_mode: FakeTensorMode) -> tuple[object, ...]:
    """The leading arguments that `srr::dense_mlp` and `srr::neuron_mlp` share."""
    arguments: list[object] = [site.x]
    for linear in (site.gate, site.up, site.down):
        if linear is None:
            arguments += [None, None]
        else:
            arguments += [weight_of(graph, linear, fake_mode), bias_of(graph, linear, fake_mode)]
    return (*arguments, site.activation)


def split_list(graph: fx.Graph, results: fx.Node, linears: tuple[Linear, ...]) -> None:
    """Put item i of the list `results` in the place of linear i. Call it at a live insertion point."""
    items = [graph.call_function(operator.getitem, (results, index)) for index in range(len(linears))]
    for linear, item, value in zip(linears, items, value_of(results), strict=True):
        item.meta["example_value"] = value
        replace(graph, (linear.node,), linear.node, item)


def split_columns(
    graph: fx.Graph, result: fx.Node, linears: tuple[Linear, ...], fake_mode: FakeTensorMode
) -> None:
    """Put the columns of `result` [..., N_0 + N_1 + ...] in the places of the linears, as views."""
    items, start = [], 0
    for linear in linears:
        args = (result, -1, start, start + linear.out_features)
        items.append(
            result if len(linears) == 1 else emit(graph, torch.ops.aten.slice.Tensor, args, fake_mode)
        )
        start += linear.out_features
    for linear, item in zip(linears, items, strict=True):
        replace(graph, (linear.node,), linear.node, item)


def replace(graph: fx.Graph, nodes: tuple[fx.Node, ...], old: fx.Node, new: fx.Node) -> None:
    """Let `new` stand for `old`, and drop those of `nodes` that nothing reads any more."""
    new.meta = {**old.meta, **new.meta}
    old.replace_all_uses_with(new)
    old.meta[REPLACED_BY] = new
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)
