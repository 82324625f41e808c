"""Puts new calls into a graph together with the fake values that later passes and Inductor read."""

from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

REPLACED_BY = "srr_replaced_by"
"""Key of an erased node's meta: the node that took its place."""


def emit(graph: fx.Graph, target: Any, args: tuple[Any, ...], fake_mode: FakeTensorMode) -> fx.Node:
    """Insert a call of `target` at the graph's insertion point and compute its `example_value`.

    What a pass has replaced since it was found (a linear that another one reads) is followed to what stands for it.
    """
    args = fx.map_arg(args, current)
    node = graph.call_function(target, args)
    with fake_mode, torch.no_grad():
        node.meta["example_value"] = target(*fx.map_arg(args, value_of))
    return node


def emit_tensor(gm: fx.GraphModule, name: str, tensor: torch.Tensor, fake_mode: FakeTensorMode) -> fx.Node:
    """Hold `tensor` in `gm` as buffer `name` and insert a `get_attr` of it at the insertion point."""
    gm.register_buffer(name, tensor, persistent=False)
    node = gm.graph.get_attr(name)
    node.meta["example_value"] = fake_mode.from_tensor(tensor, static_shapes=True)
    return node


def current(node: fx.Node) -> fx.Node:
    """What stands for a node now: itself, or what it was replaced by."""
    while REPLACED_BY in node.meta:
        node = node.meta[REPLACED_BY]
    return node


def value_of(node: fx.Node) -> Any:
    """The fake value of a node. Raises KeyError for a node that no pass gave one."""
    return node.meta["example_value"]
