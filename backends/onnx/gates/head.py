"""srrc::Head: logits that are exact for the tokens that can come next, and coarse for the others.

    Head(x [..., H], weight [V, H], codes [V, ...], scale [V, ...], bias [V] or none; exact, bits, gate) -> [..., V]

    If the threshold is negative:  x weight^T + bias
    else:                          coarse logits, and the `exact` largest of them computed again from `weight`

`srr::vocab_head` reads some directions of a rotated copy of the weight; ONNX Runtime reads all of a coarse copy in less
time than it would take to pick them. So every threshold of 0 or more means the same here.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, fx

from srrc.backends.onnx.build import Nodes, choose, constant, op, replace_node, total, width_of
from srrc.backends.onnx.gates.coarse import product_attributes
from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.symbolic import symbolic
from srrc.ops.coarse_linear import coarse_weight
from srrc.passes.gating.coarse_vocab import BITS, EXACT


def lower(lowering: Lowering, head: fx.Node, gate: str) -> None:
    """Replace a `srr::coarse_head` node."""
    x, weight, bias, codes, scale, _, _, exact, bits = head.args
    with lowering.gm.graph.inserting_before(head):
        args = (gate, exact, bits, x, weight, codes, scale, *([] if bias is None else [bias]))
        lowering.replace(head, gated_head, args)


def lower_by_direction(lowering: Lowering, head: fx.Node, gate: str) -> None:
    """Replace a `srr::vocab_head` node, whose profile was made for the CPU backend."""
    x, weight, bias = head.args[:3]
    codes, scale = coarse_weight(lowering.tensor(weight), BITS)
    with lowering.gm.graph.inserting_before(head):
        held = [lowering.hold(each) for each in (codes, scale)]
        args = (gate, EXACT, BITS, x, weight, *held, *([] if bias is None else [bias]))
        lowering.replace(head, gated_head, args)


def gated_head(
    gate: str, exact: int, bits: int, x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, *bias: Tensor
) -> Tensor:
    """Exports as srrc::Head."""
    shape = (*x.shape[:-1], weight.shape[0])
    inputs = (x, weight, codes, scale.to(x.dtype), *bias)
    attributes: dict[str, int | float | str] = {
        "exact": min(exact, int(weight.shape[0])),
        "bits": bits,
        "gate": gate,
    }
    return symbolic("srrc::Head", inputs, shape, x.dtype, attributes)


def leave(node: ir.Node) -> None:
    """Take the gate out of the graph: every logit is exact."""
    x, weight = node.inputs[:2]
    nodes: Nodes = []
    turned = op(nodes, "Transpose", [weight], {"perm": [1, 0]})
    logits = total(nodes, node.inputs[4] if len(node.inputs) > 4 else None, op(nodes, "MatMul", [x, turned]))
    logits.type, logits.shape = node.outputs[0].type, node.outputs[0].shape
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, nodes)
    replace_node(node, logits)


def limits_of(node: ir.Node) -> NDArray[np.float32]:
    """What is taken off the logarithm of the threshold: nothing."""
    return np.zeros(1, dtype=np.float32)


def expand(node: ir.Node, limit: ir.Value) -> None:
    """Put standard operators in the place of a `Head`. limit: float32 [1], NaN where the threshold is negative."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    x, weight, codes, scale = (each for each in node.inputs[:4])
    bias = node.inputs[4] if len(node.inputs) > 4 else None
    end = node.outputs[0]
    assert x is not None
    assert weight is not None
    nodes: Nodes = []
    turned = op(nodes, "Transpose", [weight], {"perm": [1, 0]})
    opened = op(nodes, "IsNaN", [limit])
    dense: Nodes = []
    logits = total(dense, bias, op(dense, "MatMul", [x, turned]))
    coarse: Nodes = []
    result = ir.val("logits_of_head", end.dtype, end.shape)
    found = _coarse(coarse, node, x, weight, codes, scale, bias)
    choose(nodes, opened, (dense, [logits]), (coarse, [found]), [result], ("dense_head", "coarse_head"))
    graph.insert_before(node, nodes)
    replace_node(node, result)


def _coarse(
    nodes: Nodes,
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    codes: ir.Value | None,
    scale: ir.Value | None,
    bias: ir.Value | None,
) -> ir.Value:
    tokens, width = width_of(node.outputs[0]), width_of(weight)
    attributes = product_attributes(width, tokens, node.attributes.get_int("bits"))
    logits = op(nodes, "MatMulNBits", [x, codes, scale], attributes, domain="com.microsoft")
    logits.type = x.type  # ONNX's own inference does not know the operator
    logits = total(nodes, bias, logits)
    count = constant(nodes, [node.attributes.get_int("exact")], np.int64)
    best = ir.Node("", "TopK", [logits, count], [ir.AttrInt64("sorted", 0)], num_outputs=2)
    nodes.append(best)
    index, last = best.outputs[1], constant(nodes, [-1], np.int64)
    rows = op(nodes, "Gather", [weight, index], {"axis": 0})  # [..., exact, H]
    product = op(nodes, "MatMul", [rows, op(nodes, "Unsqueeze", [x, last])])
    exact = op(nodes, "Squeeze", [product, last])
    if bias is not None:
        exact = op(nodes, "Add", [exact, op(nodes, "Gather", [bias, index], {"axis": 0})])
    return op(nodes, "ScatterElements", [logits, index, exact], {"axis": -1})
