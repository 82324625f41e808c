"""What each node of the domain `srrc` is in plain ONNX. One file an operator."""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from srrc.backends.onnx.expand import branch
from srrc.backends.onnx.lower_gates import DOMAIN

EXPAND: dict[str, Callable[[ir.Node], None]] = {
    "Branch": branch.expand,
}
"""Name of the operator -> what replaces a node of it, in its graph."""


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
