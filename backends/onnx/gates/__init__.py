"""How each gate becomes ONNX: first a node of the domain `srrc`, then standard operators. One file a gate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from torch import fx

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.backends.onnx.build import Nodes, constant, op
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


@dataclass(frozen=True)
class Operator:
    """What an operator of the domain `srrc` becomes.

    expand: puts standard operators in the place of a node, given its gate's limits: float32 [units], the logarithm of
            the threshold less what `limits` says
    leave:  takes the gate out
    """

    expand: Callable[[ir.Node, ir.Value], None]
    leave: Callable[[ir.Node], None]
    limits: Callable[[ir.Node], NDArray[np.float32]]


OPERATORS = {
    "Blocks": Operator(blocks.expand, blocks.leave, blocks.limits_of),
    "Branch": Operator(branch.expand, branch.leave, branch.limits_of),
    "Head": Operator(head.expand, head.leave, head.limits_of),
}
"""Gates, by the type of their node."""


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
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    gated = {node.attributes.get_string("gate"): node for node in nodes if "gate" in node.attributes}
    limits = _limits(model, {gate: (limit, gated[gate]) for gate, limit in thresholds.items()})
    for node in nodes:
        limit = limits.get(node.attributes.get_string("gate", ""))
        if node.op_type == experts.OPERATOR:
            experts.expand(node)
        elif limit is None:
            OPERATORS[node.op_type].leave(node)
        else:
            OPERATORS[node.op_type].expand(node, limit)
    model.graph.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph.all_nodes()} - model.graph.opset_imports.keys():
        model.graph.opset_imports[domain] = 1
    common.RemoveUnusedNodesPass()(model)
    _name_inner_values(model)


def _limits(model: ir.Model, gates: Mapping[str, tuple[float, ir.Node]]) -> dict[str, ir.Value]:
    """Gate id -> its limits [units], from a new input with a default. For all gates at once: each node costs time.

    gates: id -> (threshold, node)
    """
    if not gates:
        return {}
    default = ir.tensor(np.array([limit for limit, _ in gates.values()], dtype=np.float32), name=THRESHOLDS)
    given = ir.val(THRESHOLDS, ir.DataType.FLOAT, ir.Shape([len(gates)]), const_value=default)
    model.graph.inputs.append(given)
    model.graph.register_initializer(given)
    taken_off = [OPERATORS[node.op_type].limits(node) for _, node in gates.values()]
    units = [len(each) for each in taken_off]
    nodes: Nodes = []
    of = constant(nodes, np.repeat(np.arange(len(gates)), units), np.int64)
    logs = op(nodes, "Log", [op(nodes, "Gather", [given, of], {"axis": 0})])
    limits = op(nodes, "Sub", [logs, constant(nodes, np.concatenate(taken_off), np.float32)])
    sizes = constant(nodes, units, np.int64)
    cut = ir.Node("", "Split", [limits, sizes], [ir.AttrInt64("axis", 0)], num_outputs=len(gates))
    model.graph.insert_before(model.graph[0], [*nodes, cut])
    return dict(zip(gates, cut.outputs, strict=True))


def _name_inner_values(model: ir.Model) -> None:
    """Give what subgraphs compute names of their own: ONNX has one name space for a graph and all that is inside it."""
    common.NameFixPass()(model)
    count = 0
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            for value in node.outputs:
                count += 1
                value.name = f"srrc_{count}"
