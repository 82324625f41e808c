"""Makes an exported graph smaller, with the same values: what torch's exporter writes once a layer or once a use."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> None:
    """Edit `model` in place: equal subexpressions once, shapes as constants where they can be, nothing unused."""
    common.CommonSubexpressionEliminationPass()(model)
    _constant_shapes(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _constant_shapes(model: ir.Model) -> None:
    """Give each `Reshape` whose dimensions are those of its input, or numbers, a constant shape: 0 copies, -1 is found.

    Where the target was computed, from sizes of the graph's inputs, that computation falls away; and the node no longer
    says how many tokens there are, so that it can run on some of them.
    """
    for node in model.graph.all_nodes():
        if node.op_type != "Reshape" or node.domain:
            continue
        x, shape = node.inputs
        out = node.outputs[0]
        if (
            x is None
            or shape is None
            or x.shape is None
            or out.shape is None
            or shape.const_value is not None
        ):
            continue
        target = _target(list(x.shape), list(out.shape))
        if target is not None:
            node.replace_input_with(1, _constant(model, target))
            node.attributes.pop("allowzero", None)  # torch's exporter sets it; here 0 is to copy


def _target(source: list[int | ir.SymbolicDim], wanted: list[int | ir.SymbolicDim]) -> list[int] | None:
    """A constant shape that takes every tensor of shape `source` to `wanted`; None where there is none."""
    target: list[int] = []
    for at, size in enumerate(wanted):
        if size == 0:
            return None
        if isinstance(size, int):
            target.append(size)
        elif at < len(source) and source[at] == size and all(each == 0 for each in target):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _constant(model: ir.Model, numbers: list[int]) -> ir.Value:
    """An int64 initializer; equal ones are one."""
    name = "shape_" + "_".join(str(number).replace("-", "n") for number in numbers)
    found = model.graph.initializers.get(name)
    if found is None:
        found = ir.val(name, const_value=ir.tensor(np.array(numbers, dtype=np.int64), name=name))
        model.graph.register_initializer(found)
    return found
