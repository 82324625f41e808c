"""srrc::GroupedProduct: each expert's matrix times the rows that chose it.

    GroupedProduct(x [R, K], weight [E, K, N], ends [E]) -> [R, N]

Rows are sorted by expert; expert e has those from ends[e - 1] up to ends[e]. In plain ONNX every expert has a MatMul of
its own over a slice of the rows, and one that no row chose multiplies nothing: MatMul takes zero rows, in no time. An
`If` around each would cost more than it saves.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from srrc.backends.onnx.build import Nodes, constant, op, replace_node
from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.symbolic import symbolic
from srrc.pathways.patterns import argument, grouped_product

OPERATOR = "GroupedProduct"


def lower(lowering: Lowering) -> None:
    """Replace every grouped product of a graph, and the histogram that its `ends` are counted with."""
    for node in list(lowering.gm.graph.nodes):
        product = grouped_product(node)
        with lowering.gm.graph.inserting_before(node):
            if product is not None:
                lowering.replace(node, grouped, (*product, argument(node, 2, "offs")))
            elif node.op == "call_function" and node.target is torch.histc:
                args = (
                    node.args[0],
                    *(argument(node, at, name) for at, name in enumerate(("bins", "min", "max"), 1)),
                )
                lowering.replace(node, counted, args)


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Exports as srrc::GroupedProduct."""
    return symbolic(f"srrc::{OPERATOR}", (x, weight, ends), (x.shape[0], weight.shape[2]), x.dtype)


def counted(x: Tensor, bins: int, low: Any, high: Any) -> Tensor:
    """`torch.histc` of whole numbers, a bin each; ONNX has no histogram."""
    assert int(high) - int(low) == bins - 1
    each = torch.arange(int(low), int(high) + 1, dtype=x.dtype)
    return (x[:, None] == each).sum(0).to(x.dtype)


def expand(node: ir.Node) -> None:
    """Put standard operators in the place of a `GroupedProduct`. Exact: there is no threshold."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    x, weight, ends = node.inputs
    assert weight is not None
    assert weight.shape is not None
    experts = weight.shape[0]
    assert isinstance(experts, int)
    nodes: Nodes = []
    wide = op(nodes, "Cast", [ends], {"to": ir.DataType.INT64})
    starts = [constant(nodes, [0], np.int64)]
    products = []
    for expert in range(experts):
        stop = op(nodes, "Slice", [wide, *(constant(nodes, [at], np.int64) for at in (expert, expert + 1))])
        rows = op(nodes, "Slice", [x, starts[-1], stop, constant(nodes, [0], np.int64)])
        matrix = op(nodes, "Gather", [weight, constant(nodes, expert, np.int64)], {"axis": 0})
        products.append(op(nodes, "MatMul", [rows, matrix]))
        starts.append(stop)
    joined = op(nodes, "Concat", products, {"axis": 0})
    joined.type, joined.shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, nodes)
    replace_node(node, joined)
