"""Turns the gates of a graph into nodes of the domain `srrc`, which the exporter hands through to ONNX as they are.

A gate's threshold becomes an entry of the graph's input `srrc_thresholds`, so that one file serves any budget.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.backends.onnx.gates import LOWER, coarse
from srrc.passes.context import Context
from srrc.passes.emit import value_of

THRESHOLDS = "srrc_thresholds"
"""Name of the input, float32 [gates]: a unit is computed unless its score is at most its gate's threshold."""


@dataclass(frozen=True)
class LowerGates:
    """Replaces gated ops by calls that export as nodes of the domain `srrc`; appends the input of thresholds."""

    fake_mode: FakeTensorMode
    name: str = "lower_gates"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place. The order of `context.gates` is that of the thresholds."""
        if not context.gates:
            return gm
        each = self._thresholds(gm, len(context.gates))
        holders = {_memory(gm, node): node for node in gm.graph.find_nodes(op="get_attr")}
        for index, gate in enumerate(context.gates):
            (node,) = (user for user in holders[gate.record.data_ptr()].users if user.target in LOWER)
            with gm.graph.inserting_after(each):
                threshold = gm.graph.call_function(operator.getitem, (each, index))
            threshold.meta["example_value"] = value_of(each)[index]
            LOWER[node.target](gm, node, threshold, self.fake_mode)
        coarse.lower(gm, self.fake_mode)
        for node in reversed(gm.graph.find_nodes(op="get_attr")):
            if not node.users:
                gm.graph.erase_node(node)
        return gm

    def _thresholds(self, gm: fx.GraphModule, gates: int) -> fx.Node:
        """The new input, cut into one tensor [1] a gate."""
        last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
        with gm.graph.inserting_after(last):
            thresholds = gm.graph.placeholder(THRESHOLDS)
        with self.fake_mode:
            thresholds.meta["example_value"] = torch.empty(gates)
        with gm.graph.inserting_after(thresholds):
            each = gm.graph.call_method("split", (thresholds, 1))
        with self.fake_mode:
            each.meta["example_value"] = value_of(thresholds).split(1)
        return each


def _memory(gm: fx.GraphModule, node: fx.Node) -> int | None:
    held: Any = getattr(gm, str(node.target), None)
    return held.data_ptr() if isinstance(held, Tensor) else None
