"""How each gate becomes ONNX: first a node of the domain `srrc`, then standard operators. One file a gate."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import fx

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.backends.onnx.gates import blocks, branch, experts, head
from srrc.backends.onnx.lowering import Lowering

DOMAIN = "srrc"

THRESHOLDS = "srrc_thresholds"
"""Name of the input, float32 [gates]: a unit is computed unless its score is at most its gate's threshold."""

LOWER: dict[object, Callable[[Lowering, fx.Node, str], None]] = {
    torch.ops.srr.layer_gate.default: branch.lower,
    torch.ops.srr.block_gate.default: blocks.lower,
    torch.ops.srr.coarse_head.default: head.lower,
    torch.ops.srr.vocab_head.default: head.lower_by_direction,
}
"""Gated op -> what puts a node of the domain `srrc` in its place: (graph, gated op, id of the gate)."""

EXPAND: dict[str, tuple[Callable[[ir.Node, ir.Value], None], Callable[[ir.Node], None]]] = {
    "Blocks": (blocks.expand, blocks.leave),
    "Branch": (branch.expand, branch.leave),
    "Head": (head.expand, head.leave),
    "GroupedProduct": (experts.expand, experts.expand),
}
"""Operator of the domain `srrc` -> what puts standard operators in the place of a node, given its threshold; and what
takes its gate out.
"""


def gates_in(model: ir.Model) -> list[str]:
    """Ids of the gates that nodes of the domain `srrc` stand for, in graph order."""
    marked = (node for node in model.graph if node.domain == DOMAIN)
    return [node.attributes.get_string("gate") for node in marked if "gate" in node.attributes]


def expand(model: ir.Model, thresholds: Mapping[str, float]) -> None:
    """Replace every node of the domain `srrc` in `model` by standard operators.

    thresholds: gate id -> threshold, for the gates that stay, in the order in which the model's input
                `srrc_thresholds` is to hold them; it may be left out by a caller, and is these numbers then. The other
                gates are taken out. Without any there is no such input.
    """
    limits = _input(model, thresholds) if thresholds else {}
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        limit = limits.get(node.attributes.get_string("gate", ""))
        put, leave = EXPAND[node.op_type]
        if limit is None:
            leave(node)
        else:
            put(node, limit)
    model.graph.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph.all_nodes()} - model.graph.opset_imports.keys():
        model.graph.opset_imports[domain] = 1
    common.RemoveUnusedNodesPass()(model)
    _name_inner_values(model)


def _input(model: ir.Model, thresholds: Mapping[str, float]) -> dict[str, ir.Value]:
    """Gate id -> its threshold [1], cut from a new input with a default."""
    default = ir.tensor(np.array([*thresholds.values()], dtype=np.float32), name=THRESHOLDS)
    given = ir.val(THRESHOLDS, ir.DataType.FLOAT, ir.Shape([len(thresholds)]), const_value=default)
    model.graph.inputs.append(given)
    model.graph.register_initializer(given)
    cut = ir.Node(
        "", "Split", [given], [ir.AttrInt64("axis", 0), ir.AttrInt64("num_outputs", len(thresholds))],
        num_outputs=len(thresholds),
    )  # fmt: skip
    model.graph.insert_before(model.graph[0], cut)
    return dict(zip(thresholds, cut.outputs, strict=True))


def _name_inner_values(model: ir.Model) -> None:
    """Give what subgraphs compute names of their own: ONNX has one name space for a graph and all that is inside it."""
    common.NameFixPass()(model)
    count = 0
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            for value in node.outputs:
                count += 1
                value.name = f"srrc_{count}"
