"""How each gate of a graph becomes ONNX: first a node of the domain `srrc`, then standard operators. One file a gate."""

from collections.abc import Callable

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import fx
from torch._subclasses import FakeTensorMode

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.backends.onnx.gates import branch

DOMAIN = "srrc"

LOWER: dict[object, Callable[[fx.GraphModule, fx.Node, fx.Node, FakeTensorMode], None]] = {
    torch.ops.srr.layer_gate.default: branch.lower,
}
"""Gated op -> what puts its node of the domain `srrc` into an FX graph: (graph, node, threshold, fake mode)."""

EXPAND: dict[str, Callable[[ir.Node], None]] = {
    "Branch": branch.expand,
}
"""Operator of the domain `srrc` -> what puts standard operators into its graph instead."""


def expand(model: ir.Model) -> None:
    """Replace every node of the domain `srrc` in `model` by standard operators."""
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        EXPAND[node.op_type](node)
    model.graph.opset_imports.pop(DOMAIN, None)
    common.RemoveUnusedNodesPass()(model)
    _name_inner_values(model)


def _name_inner_values(model: ir.Model) -> None:
    """Give what subgraphs compute names of their own: ONNX has one name space for a graph and all that is inside it."""
    common.NameFixPass()(model)
    count = 0
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            for value in node.outputs:
                count += 1
                value.name = f"srrc_{count}"
