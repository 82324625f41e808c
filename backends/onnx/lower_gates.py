"""Turns the gates of a graph into nodes of the domain `srrc`, which the exporter hands through to ONNX as they are.

A gate's threshold becomes an entry of the graph's input `srrc_thresholds`, so that one file serves any budget. What
stands for each such node in plain ONNX is written in `backends/onnx/expand`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.linear_arguments import replace

THRESHOLDS = "srrc_thresholds"
"""Name of the input, float32 [gates]: a unit is computed unless its score is at most its gate's threshold."""

DOMAIN = "srrc"


@dataclass(frozen=True)
class LowerGates:
    """Replaces gated ops by calls that export as nodes of the domain `srrc`; appends the input of thresholds."""

    fake_mode: FakeTensorMode
    name: str = "lower_gates"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place. The order of `context.gates` is that of the thresholds."""
        if not context.gates:
            return gm
        last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
        with gm.graph.inserting_after(last):
            thresholds = gm.graph.placeholder(THRESHOLDS)
        with self.fake_mode:
            thresholds.meta["example_value"] = torch.empty(len(context.gates))
        with gm.graph.inserting_after(thresholds):
            each = gm.graph.call_method("split", (thresholds, 1))
        with self.fake_mode:
            each.meta["example_value"] = value_of(thresholds).split(1)
        for index, gate in enumerate(context.gates):
            lower = _LOWER[gate.id.split(":", 1)[0]]
            lower(gm, _holder(gm, gate.record), each, index, self.fake_mode)
        return gm


def symbolic(op: str, inputs: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """A call that exports as the node `srrc::op` with a result of the shape and dtype of `like`."""
    made: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op}", inputs, {}, dtype=like.dtype, shape=like.shape, version=1
    )
    return made


def gated_branch(entry: Tensor, probe: Tensor, threshold: Tensor, value: Tensor) -> Tensor:
    """`value` for the rows that the gate keeps, 0 for the others: exported as srrc::Branch."""
    return symbolic("Branch", (entry, probe, threshold, value), value)


def _branch(gm: fx.GraphModule, record: fx.Node, each: fx.Node, index: int, fake_mode: FakeTensorMode) -> None:
    (keep,) = record.users
    entry, probe, _, counters = keep.args
    for mask in list(keep.users):
        with gm.graph.inserting_before(mask):
            threshold = _item(gm.graph, each, index)
            result = emit(gm.graph, gated_branch, (entry, probe, threshold, mask.args[1]), fake_mode)
        replace(gm.graph, (mask,), mask, result)
    for node in (keep, record, counters):
        assert isinstance(node, fx.Node)
        if not node.users:
            gm.graph.erase_node(node)


_LOWER: dict[str, Callable[[fx.GraphModule, fx.Node, fx.Node, int, FakeTensorMode], None]] = {
    "residual": _branch,
}
"""Kind of gate -> how it is lowered, given the node that holds its record."""


def _item(graph: fx.Graph, each: fx.Node, index: int) -> fx.Node:
    import operator

    node = graph.call_function(operator.getitem, (each, index))
    node.meta["example_value"] = value_of(each)[index]
    return node


def _holder(gm: fx.GraphModule, record: Tensor) -> fx.Node:
    """The node that reads the buffer of which `record` is a part."""
    for node in gm.graph.find_nodes(op="get_attr"):
        held: Any = getattr(gm, str(node.target), None)
        if isinstance(held, Tensor) and held.data_ptr() == record.data_ptr():
            return node
    raise LookupError("the graph does not hold the gate's record")
