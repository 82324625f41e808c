"""Drops calls that return their own argument: dropout in evaluation, casts to the same type and their kin."""

from torch import fx
from torch.nn import functional

from srrc.pathways.effects import written_arguments
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import argument, called_name, is_method

_CASTS = frozenset({"to", "type_as", "type", "float", "half", "bfloat16", "double"})


def drop_noops(view: GraphView) -> int:
    """Remove calls whose value is their argument itself. Returns the number removed.

    A call whose value is handed out of the graph or written to is left alone.
    """
    removed = 0
    for node in view.nodes:
        if _is_telemetry(node):
            view.graph.erase_node(node)
            removed += 1
        elif _returns_argument(view, node) and not _is_exposed(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            view.graph.erase_node(node)
            removed += 1
    return removed


def _is_telemetry(node: fx.Node) -> bool:
    return called_name(node) == "_log_api_usage_once" and not node.users


def _is_exposed(node: fx.Node) -> bool:
    return any(user.op == "output" or node in written_arguments(user) for user in node.users)


def _returns_argument(view: GraphView, node: fx.Node) -> bool:
    if node.op not in {"call_method", "call_function"} or not node.args or view.tensor(node.args[0]) is None:
        return False
    if node.target is functional.dropout:
        return (
            argument(node, 2, "training", default=True) is False or argument(node, 1, "p", default=0.5) == 0.0
        )
    if is_method(node, "contiguous"):
        return len(node.args) == 1 and not node.kwargs and view.is_contiguous(node.args[0])
    if is_method(node, "view", "reshape"):
        return _reshapes_to_itself(view, node)
    return is_method(node, *_CASTS) and _casts_to_itself(view, node)


def _reshapes_to_itself(view: GraphView, node: fx.Node) -> bool:
    before, after = view.tensor(node.args[0]), view.tensor(node)
    if before is None or after is None or before.dtype != after.dtype:  # `view` can also reinterpret the bits
        return False
    return view.shape(node) == view.shape(node.args[0]) and view.is_contiguous(node.args[0])


def _casts_to_itself(view: GraphView, node: fx.Node) -> bool:
    before, after = view.tensor(node.args[0]), view.tensor(node)
    if before is None or after is None or node.kwargs.keys() - {"dtype", "device", "non_blocking"}:
        return False
    # `copy` can also come by position, as the third or fourth argument, and always as a bool.
    if any(value is True for value in node.args[1:]):
        return False
    return (before.dtype, before.device, before.layout) == (after.dtype, after.device, after.layout)
