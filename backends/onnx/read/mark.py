"""Puts the gates of a mirror into the ONNX graph that it was read from, as nodes of the domain `srrc`."""

from collections.abc import Iterable

import onnx_ir as ir
import torch
from torch import Tensor, fx

from srrc.backends.onnx.build import initializer, replace_node
from srrc.backends.onnx.gates import DOMAIN, blocks
from srrc.backends.onnx.gates.coarse import product_attributes
from srrc.backends.onnx.read.mirror import VALUE, Mirror
from srrc.backends.onnx.regions import copy_nodes, leading_to
from srrc.ops.coarse_linear import coarse_weight
from srrc.passes.gating.blocks import BLOCKS
from srrc.passes.gating.coarse_vocab import BITS, EXACT
from srrc.passes.gating.residual import COARSE
from srrc.passes.gating.source import GateSource
from srrc.pathways.base import Pathway
from srrc.pathways.neuron import Mlp
from srrc.pathways.residual import Branch
from srrc.pathways.vocab import Head


def mark(
    model: ir.Model, mirror: Mirror, pathways: Iterable[Pathway], source: GateSource, gates: Iterable[str]
) -> list[str]:
    """Edit `model` in place. gates: ids of those to put in. Returns the ids of those that found no place."""
    wanted, missed = set(gates), []
    # A branch's coarse copy is made of what it is without the gates inside.
    for pathway in sorted(pathways, key=lambda each: each.kind != "residual"):
        name = f"{pathway.kind}:{pathway.place}"
        for gate in (f"{name}{COARSE}", name, f"{name}{BLOCKS}"):  # the coarse one is inside of the other
            if gate not in wanted:
                continue
            site = pathway.site
            if isinstance(site, Branch):
                placed = _branch(model, site, gate, name, source)
            elif isinstance(site, Mlp):
                placed = _blocks(model, site, gate)
            else:
                placed = isinstance(site, Head) and _head(model, site, gate, mirror)
            if not placed:
                missed.append(gate)
    blocks.fill(model, pathways, source)
    return missed


def _branch(model: ir.Model, site: Branch, gate: str, name: str, source: GateSource) -> bool:
    entry, end, total = (_value(node) for node in (site.entry, site.exit, site.add))
    add = None if total is None else total.producer()
    if entry is None or end is None or add is None:
        return False
    reads = next((at for at, value in enumerate(add.inputs) if _through_gates(value) is end), None)
    if reads is None:
        return False
    value = add.inputs[reads]
    probe = initializer(model, f"{gate}/probe", source.vectors[f"{name}/probe"])
    marker = ir.node("Branch", [entry, probe, value], {"gate": gate}, domain=DOMAIN)
    marker.outputs[0].type, marker.outputs[0].shape = end.type, end.shape
    model.graph.insert_before(add, marker)
    add.replace_input_with(reads, marker.outputs[0])
    if gate.endswith(COARSE):
        _stand_in(model, marker, int(source.vectors[f"{name}/bits"]))
    return True


def _stand_in(model: ir.Model, marker: ir.Node, bits: int) -> None:
    """Give a branch's marker the same branch with coarse weights."""
    value = marker.inputs[2]
    assert value is not None
    copies: dict[ir.Value, ir.Value] = {}
    nodes: list[ir.Node] = []
    for node in leading_to(marker, [value]):
        made = _coarse_product(model, node, copies, bits)
        nodes += made or copy_nodes([node], copies)
    model.graph.insert_before(marker, nodes)
    other = ir.node(
        "Branch",
        [*marker.inputs, copies[value]],
        {"gate": marker.attributes.get_string("gate")},
        domain=DOMAIN,
    )
    other.outputs[0].type, other.outputs[0].shape = value.type, value.shape
    model.graph.insert_before(marker, other)
    marker.outputs[0].replace_all_uses_with(other.outputs[0])
    model.graph.remove(marker, safe=True)


def _coarse_product(
    model: ir.Model, node: ir.Node, copies: dict[ir.Value, ir.Value], bits: int
) -> list[ir.Node] | None:
    """The product with coarse weights that stands for a MatMul or Gemm with constant ones; None for another node."""
    if node.op_type not in {"MatMul", "Gemm"} or node.inputs[1] is None:
        return None
    held = ir.convenience.get_const_tensor(node.inputs[1])
    x = node.inputs[0]
    if held is None or x is None or len(held.shape) != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    weight = torch.from_numpy(held.numpy().copy())
    weight = weight if node.attributes.get_int("transB", 0) == 1 else weight.t()
    name = node.inputs[1].name
    product = _bits(model, copies.get(x, x), weight, f"{name}/coarse", bits)
    nodes = [product]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
    out = node.outputs[0]
    for each in nodes:
        each.outputs[0].type, each.outputs[0].shape = out.type, out.shape
    copies[out] = nodes[-1].outputs[0]
    return nodes


def _bits(model: ir.Model, x: ir.Value, weight: Tensor, name: str, bits: int) -> ir.Node:
    codes, scale = coarse_weight(weight, bits)
    held = [initializer(model, f"{name}/{part}", each) for part, each in (("codes", codes), ("scale", scale))]
    attributes = product_attributes(weight.shape[1], weight.shape[0], bits)
    return ir.node("MatMulNBits", [x, *held], attributes, domain="com.microsoft")


def _blocks(model: ir.Model, site: Mlp, gate: str) -> bool:
    x, end = _value(site.x), _value(site.down.node)
    producer = None if end is None else end.producer()
    if x is None or end is None or producer is None or end.is_graph_output():
        return False
    marker = ir.node(blocks.OPERATOR, [x, end], {"gate": gate}, domain=DOMAIN)
    made = marker.outputs[0]
    made.type, made.shape = end.type, end.shape
    model.graph.insert_after(producer, marker)
    for user, at in list(end.uses()):
        if user is not marker:
            user.replace_input_with(at, made)
    return True


def _head(model: ir.Model, site: Head, gate: str, mirror: Mirror) -> bool:
    x, end = _value(site.linear.x), _value(site.linear.node)
    if x is None or end is None or end.producer() is None or site.linear.rows is not None:
        return False
    weight = mirror.weights[site.linear.weight.name]
    by_token = (weight.t() if site.linear.transposed else weight).contiguous()
    codes, scale = coarse_weight(by_token, BITS)
    tensors = {"codes": codes, "scale": scale}
    held = [_table(model, by_token, f"{gate}/weight")]
    held += [initializer(model, f"{gate}/{name}", each) for name, each in tensors.items()]
    if site.linear.bias is not None:
        held.append(initializer(model, f"{gate}/bias", mirror.weights[site.linear.bias.name]))
    attributes: dict[str, int | str] = {"exact": min(EXACT, len(by_token)), "bits": BITS, "gate": gate}
    marker = ir.node("Head", [x, *held], attributes, domain=DOMAIN)
    marker.outputs[0].type, marker.outputs[0].shape = end.type, end.shape
    producer = end.producer()
    assert producer is not None
    model.graph.insert_before(producer, marker)
    replace_node(producer, marker.outputs[0])
    return True


def _table(model: ir.Model, weight: Tensor, name: str) -> ir.Value:
    """The weight by tokens: the embedding where it is the same matrix, or else a copy."""
    for value in model.graph.initializers.values():
        held = value.const_value
        if held is not None and tuple(held.shape) == tuple(weight.shape):
            rows = torch.from_numpy(held.numpy()[:64].copy())
            if torch.equal(rows, weight[:64]) and torch.equal(torch.from_numpy(held.numpy().copy()), weight):
                return value
    return initializer(model, name, weight)


def _value(node: fx.Node) -> ir.Value | None:
    found: ir.Value | None = node.meta.get(VALUE)
    return found


def _through_gates(value: ir.Value | None) -> ir.Value | None:
    """What a value was before gates were put on it."""
    while value is not None:
        node = value.producer()
        if node is None or node.domain != DOMAIN or node.op_type != "Branch":
            return value
        value = node.inputs[2]
    return None
