"""Small steps of building ONNX nodes."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import tensor_adapters
from onnx_ir._convenience import SupportedAttrTypes
from torch import Tensor

from srrc.backends.onnx.regions import branch

Nodes = list[ir.Node]
"""Nodes in the order in which they run, for a graph that is not there yet."""


def op(
    nodes: Nodes,
    name: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, SupportedAttrTypes] | None = None,
    domain: str = "",
) -> ir.Value:
    """Append a node with one output."""
    node = ir.node(name, inputs, attributes or {}, domain=domain)
    nodes.append(node)
    return node.outputs[0]


def constant(nodes: Nodes, value: object, dtype: object) -> ir.Value:
    """Append a `Constant` of a NumPy dtype."""
    return op(nodes, "Constant", [], {"value": ir.tensor(np.asarray(value, dtype=dtype))})  # type: ignore[call-overload]


def register(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of a graph."""
    value = ir.val(name, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def initializer(model: ir.Model, name: str, tensor: Tensor) -> ir.Value:
    """A new initializer of a graph that holds a torch tensor."""
    return register(model, name, tensor_adapters.TorchTensor(tensor.contiguous(), name=name))


def discard(nodes: Nodes) -> None:
    """Let nodes that no graph gets read nothing any more: what they read is not read by them."""
    for node in nodes:
        for at in range(len(node.inputs)):
            node.replace_input_with(at, None)


def choose(
    nodes: Nodes,
    condition: ir.Value,
    then: tuple[Nodes, Sequence[ir.Value]],
    otherwise: tuple[Nodes, Sequence[ir.Value]],
    outputs: Sequence[ir.Value],
    names: tuple[str, str],
) -> None:
    """Append an `If` whose branches are (nodes, values); `outputs` are its results, fresh values."""
    graphs = (branch(*then, names[0]), branch(*otherwise, names[1]))
    attributes = [
        ir.AttrGraph(name, graph) for name, graph in zip(("then_branch", "else_branch"), graphs, strict=True)
    ]
    nodes.append(ir.Node("", "If", [condition], attributes, outputs=outputs))


def total(nodes: Nodes, stream: ir.Value | None, value: ir.Value) -> ir.Value:
    """`stream` + `value`, or `value` alone."""
    return value if stream is None else op(nodes, "Add", [stream, value])


def width_of(value: ir.Value) -> int:
    """The last size of a value, which must be a number."""
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


def zeros(nodes: Nodes, like: ir.Value | None, value: ir.Value) -> ir.Value:
    """Zeros for `value`, which is not there to ask for its shape. like: a value that has as many rows."""
    assert value.dtype is not None
    rows = op(nodes, "Shape", [like], {"start": 0, "end": -1})
    shape = op(nodes, "Concat", [rows, constant(nodes, [width_of(value)], np.int64)], {"axis": 0})
    return op(nodes, "ConstantOfShape", [shape], {"value": ir.tensor(np.zeros(1, dtype=value.dtype.numpy()))})


def replace_node(node: ir.Node, value: ir.Value | None) -> None:
    """Let `value` stand for the one output of `node`, and remove the node. An output of the graph keeps its name."""
    graph, end = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    assert value is not None
    for at, output in enumerate(graph.outputs):
        if output is end:
            value.name, end.name = end.name, None
            graph.outputs[at] = value
    end.replace_all_uses_with(value)
    graph.remove(node, safe=True)
