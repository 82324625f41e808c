"""Turns the gates of a graph into nodes of the domain `srrc`, which the exporter hands through to ONNX as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.backends.onnx.gates import LOWER, coarse, experts
from srrc.backends.onnx.lowering import Lowering
from srrc.passes.context import Context


@dataclass(frozen=True)
class LowerGates:
    """Replaces gated ops by calls that export as nodes of the domain `srrc`.

    weights: placeholder name -> parameter
    """

    fake_mode: FakeTensorMode
    weights: Mapping[str, Tensor]
    name: str = "lower_gates"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place."""
        lowering = Lowering(gm, self.fake_mode, self.weights, context.pathways)
        holders = {_memory(gm, node): node for node in gm.graph.find_nodes(op="get_attr")}
        for gate in context.gates:
            for node in [user for user in holders[gate.record.data_ptr()].users if user.target in LOWER]:
                LOWER[node.target](lowering, node, gate.id)
        coarse.lower(lowering)
        experts.lower(lowering)
        for node in reversed(gm.graph.find_nodes(op="get_attr")):
            if not node.users:
                gm.graph.erase_node(node)
        return gm


def _memory(gm: fx.GraphModule, node: fx.Node) -> int | None:
    held: Any = getattr(gm, str(node.target), None)
    return held.data_ptr() if isinstance(held, Tensor) else None
