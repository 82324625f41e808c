"""srrc::Blocks: an MLP that computes, for each token, the blocks of its neurons that the gate keeps.

    Blocks(x [..., H], value [..., N], probes [B, H + 1], then each block's weights; gate, activation) -> [..., N]

`value` is the MLP as it was. In plain ONNX each block is an `If` that adds its part to the sum:

    sum = If no token keeps block b:  sum, else sum + down_b(act(gate_b x) * up_b x) of the tokens that keep it

The weights are those of the MLP, its neurons sorted by blocks: `fill` gives them to a node once the graph is exported.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tensor_adapters
from torch import Tensor, fx

from srrc.backends.onnx.activations import ACTIVATIONS
from srrc.backends.onnx.build import Nodes, initializer, op, register, replace_node, total, zeros
from srrc.backends.onnx.gates.branch import addition, left_out_or
from srrc.backends.onnx.gates.part import Part
from srrc.backends.onnx.gates.token_choice import biases_of, token_choices
from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.select_rows import RowSelection
from srrc.backends.onnx.symbolic import symbolic
from srrc.passes.emit import emit
from srrc.passes.gating.blocks import gate_id_of
from srrc.passes.gating.source import GateSource
from srrc.passes.linear_arguments import replace
from srrc.pathways.base import Linear, Pathway
from srrc.pathways.neuron import Mlp

OPERATOR = "Blocks"


def lower(lowering: Lowering, keep: fx.Node, gate: str) -> None:
    """Take the mask that the `srr::block_gate` node `keep` decides out again, and mark the MLP's value instead."""
    graph = lowering.gm.graph
    (mask,) = keep.users
    (where,) = mask.users
    x, hidden = keep.args[0], where.args[1]
    assert isinstance(hidden, fx.Node)
    (end,) = (
        lowering.node(each.output.name)
        for each in lowering.pathways
        if each.kind == "neuron" and gate_id_of(each) == gate
    )
    replace(graph, (keep, mask, where), where, hidden)
    with graph.inserting_after(end):
        made = emit(graph, gated_blocks, (gate, x, end), lowering.fake_mode)
    end.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def gated_blocks(gate: str, x: Tensor, value: Tensor) -> Tensor:
    """Exports as srrc::Blocks."""
    return symbolic(f"srrc::{OPERATOR}", (x, value), value.shape, value.dtype, {"gate": gate})


def fill(model: ir.Model, pathways: Iterable[Pathway], source: GateSource) -> None:
    """Give every `Blocks` node of a graph what it computes by: probes and, block by block, weights and biases.

    Tensors are made when they are written, one at a time.
    """
    sites = {gate_id_of(each): each.site for each in pathways if isinstance(each.site, Mlp)}
    for node in [node for node in model.graph if node.op_type == OPERATOR and node.domain == "srrc"]:
        gate = node.attributes.get_string("gate")
        site = sites[gate]
        assert isinstance(site, Mlp)
        of, probes = (source.vectors[f"{gate}/{name}"] for name in ("of", "probes"))
        inputs: list[ir.Value | None] = [initializer(model, f"{gate}/probes", probes)]
        for block in range(len(probes)):
            members = (of == block).nonzero().flatten()
            for name, linear in (("gate", site.gate), ("up", site.up), ("down", site.down)):
                inputs += _weights(model, f"{gate}/{block}/{name}", linear, members, name == "down", source)
        inputs.append(_bias(model, f"{gate}/bias", site.down, None, source))
        node.resize_inputs(2 + len(inputs))
        for at, value in enumerate(inputs, 2):
            node.replace_input_with(at, value)
        node.attributes.add(ir.AttrString("activation", site.activation))


def _weights(
    model: ir.Model, name: str, linear: Linear | None, members: Tensor, by_input: bool, source: GateSource
) -> list[ir.Value | None]:
    """One block's [in, out] of a linear and, where its outputs are the neurons, its bias."""
    if linear is None:
        return [None, None]
    matrix = source.matrix(linear)
    if by_input:
        return [_picked(model, name, matrix, members, 1), None]
    return [_picked(model, name, matrix, members, 0), _bias(model, f"{name}/bias", linear, members, source)]


def _picked(model: ir.Model, name: str, matrix: Tensor, members: Tensor, dimension: int) -> ir.Value:
    """Some rows or columns of a weight [out, in], as [in, out]; copied when it is written."""
    dtype = tensor_adapters.from_torch_dtype(matrix.dtype)
    shape = list(matrix.shape[::-1])
    shape[1 - dimension] = len(members)

    def make() -> ir.TensorProtocol:
        picked = matrix.index_select(dimension, members).t().contiguous()
        return tensor_adapters.TorchTensor(picked, name=name)

    lazy = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
    return register(model, name, lazy)


def _bias(
    model: ir.Model, name: str, linear: Linear, members: Tensor | None, source: GateSource
) -> ir.Value | None:
    if linear.bias is None:
        return None
    bias = source.weights[linear.bias.name].detach()
    bias = bias if linear.rows is None else bias[slice(*linear.rows)]
    return initializer(model, name, bias if members is None else bias[members])


def leave(node: ir.Node) -> None:
    """Take the gate out of the graph: the MLP is computed as it was."""
    replace_node(node, node.inputs[1])


def limits_of(node: ir.Node) -> NDArray[np.float32]:
    """What is taken off the logarithm of the threshold: float32 [blocks]."""
    return biases_of(node.inputs[2])


def expand(node: ir.Node, limit: ir.Value) -> None:
    """Put standard operators in the place of a `Blocks`. limit: float32 [blocks]."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    x, value, probes, *weights = node.inputs
    assert x is not None
    assert value is not None
    assert value.shape is not None
    *weights, bias = weights
    nodes: Nodes = []
    axis = len(value.shape) - 2
    add = addition(node)
    end = node.outputs[0] if add is None else add.outputs[0]
    found = next(each for each in add.inputs if each is not node.outputs[0]) if add is not None else None
    found = zeros(nodes, x, value) if found is None else found
    found = found if bias is None else total(nodes, found, bias)
    choices = token_choices(nodes, node, x, probes, limit, axis)
    activation = node.attributes.get_string("activation", "")
    for at, choice in enumerate(choices):
        part = _part(x, weights[6 * at : 6 * at + 6], activation, axis)
        result = ir.val(f"with_block_{at}", end.dtype, end.shape)
        left_out_or(nodes, part, choice, (x, value), found, result)
        found = result
    graph.insert_before(node if add is None else add, nodes)
    end.replace_all_uses_with(found)
    graph.remove([*([] if add is None else [add]), node], safe=True)


def _part(x: ir.Value, weights: list[ir.Value | None], activation: str, axis: int) -> Part:
    """A block's neurons, from the MLP's input to what they add to its output."""
    gate, gate_bias, up, up_bias, down, _ = weights
    act = ACTIVATIONS[activation]
    nodes: Nodes = []
    hidden = _product(nodes, x, up, up_bias)
    if gate is None:
        hidden = act(nodes, hidden)
    else:
        hidden = op(nodes, "Mul", [act(nodes, _product(nodes, x, gate, gate_bias)), hidden])
    _tell_shapes(nodes, x, up)
    first = len(nodes)
    value = _product(nodes, hidden, down, None)
    _tell_shapes(nodes[first:], x, down)
    rows = RowSelection(set(nodes))
    return Part(nodes, rows, rows.some(value, axis))


def _product(nodes: Nodes, x: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    return total(nodes, bias, op(nodes, "MatMul", [x, weight]))


def _tell_shapes(nodes: Nodes, x: ir.Value, weight: ir.Value | None) -> None:
    """Selecting rows asks for ranks. Every value here has `x`'s rows, or is a number."""
    assert weight is not None
    assert weight.shape is not None
    assert x.shape is not None
    for node in nodes:
        number = node.op_type in {"Constant", "CastLike"}
        shape = [] if number else [*x.shape[:-1], weight.shape[-1]]
        node.outputs[0].type, node.outputs[0].shape = weight.type, ir.Shape(shape)
