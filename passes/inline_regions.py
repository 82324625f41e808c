"""Puts the bodies of nested compile regions back in place, so that their pathways have nodes of their own.

Dynamo shares one body between equal calls (`torch.compiler.nested_compile_region`). srrc finds equal regions
by itself later on, and a gate belongs to one layer, not to all that look like it.
"""

import operator
from typing import Any

import torch
from torch import fx

from srrc.pathways.graph_view import GraphView

_INVOKE = torch.ops.higher_order.invoke_subgraph


def inline_regions(view: GraphView) -> int:
    """Inline every `invoke_subgraph` of the graph. Returns the number of calls inlined."""
    owner = view.graph.owning_module
    calls = [node for node in view.nodes if node.op == "call_function" and node.target is _INVOKE]
    done = 0
    for call in calls:
        body = call.args[0]
        assert isinstance(body, fx.Node)
        module = getattr(owner, str(body.target), None)
        if isinstance(module, fx.GraphModule):
            _inline(view.graph, call, module, call.args[2:])
            done += 1
    if done and owner is not None:
        owner.delete_all_unused_submodules()
    return done


def _inline(graph: fx.Graph, call: fx.Node, module: fx.GraphModule, arguments: tuple[Any, ...]) -> None:
    body = call.args[0]
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, arguments, strict=True))
    with graph.inserting_before(call):
        outputs: Any = graph.graph_copy(module.graph, values)
    for user in list(call.users):
        if user.target is operator.getitem and isinstance(outputs, tuple | list):
            position = user.args[1]
            assert isinstance(position, int)
            _replace(graph, user, outputs[position])
    if call.users:
        # Somebody takes all outputs at once: they are a tuple of nodes now.
        for user in list(call.users):
            user.args = fx.map_arg(user.args, lambda node: outputs if node is call else node)
    graph.erase_node(call)
    if isinstance(body, fx.Node) and not body.users:
        graph.erase_node(body)


def _replace(graph: fx.Graph, node: fx.Node, value: Any) -> None:
    if isinstance(value, fx.Node):
        node.replace_all_uses_with(value)
    else:
        for user in list(node.users):
            user.args = fx.map_arg(user.args, lambda each: value if each is node else each)
    graph.erase_node(node)
