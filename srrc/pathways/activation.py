"""Names an activation function from the nodes that compute it."""

from dataclasses import dataclass

from torch import fx

from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import is_call


@dataclass(frozen=True)
class Activation:
    """`name`(x), computed by `nodes` (x excepted)."""

    name: str
    x: fx.Node
    nodes: tuple[fx.Node, ...]


def read_activation(view: GraphView, node: fx.Node) -> Activation | None:
    """The activation whose value `node` is, or None."""
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node):
        return None
    if is_call(node, "silu"):
        return Activation("silu", x, (node,))
    if is_call(node, "relu"):
        return Activation("relu", x, (node,))
    if is_call(node, "gelu"):
        approximate = node.kwargs.get("approximate", "none")
        return Activation("gelu_tanh" if approximate == "tanh" else "gelu", x, (node,))
    return None
