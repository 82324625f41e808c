"""An ONNX graph as an FX graph of the same values, node by node, at one size of its inputs.

Operators that finders look for are spelled as torch spells them (`spell.py`); every other one is a call into ONNX
Runtime, so that no operator is missing. What depends on nothing but sizes and constants is computed once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.backends.onnx.read.call import OnnxCall
from srrc.backends.onnx.read.spell import SPELLINGS
from srrc.errors import ModelError

VALUE = "onnx_value"
"""Key of a node's meta: the ONNX value that it computes."""


@dataclass(eq=False)
class Mirror:
    """What was read.

    gm:      placeholders are the model's inputs, then its weights; the outputs are the model's, in order
    inputs:  names of the inputs, in order
    weights: placeholder name -> the initializer's values
    fqns:    placeholder name -> the initializer's name
    Nodes that compute a value of the model hold it in their meta, under `VALUE`.
    """

    gm: fx.GraphModule
    inputs: list[str]
    weights: dict[str, Tensor]
    fqns: dict[str, str]
    fake_mode: FakeTensorMode


def mirror(model: ir.Model, feed: Mapping[str, Tensor]) -> Mirror:
    """Read `model` for inputs of the sizes of `feed`; runs it once, operator by operator.

    Raises ModelError for an input that `feed` does not have, and for control flow, which is not looked into.
    """
    builder = _Builder(model)
    for value in model.graph.inputs:
        if value.name not in feed and value.const_value is None:
            raise ModelError(f"cannot read the model: there is no example of its input {value.name}")
        if value.const_value is None:
            builder.add_input(value, feed[value.name or ""])
    with torch.no_grad():
        for node in model.graph:
            builder.add(node)
    return builder.finish()


@dataclass(eq=False)
class _Builder:
    model: ir.Model
    graph: fx.Graph = field(default_factory=fx.Graph)
    fake_mode: FakeTensorMode = field(default_factory=FakeTensorMode)
    nodes: dict[ir.Value, fx.Node] = field(default_factory=dict)
    known: dict[ir.Value, Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    fqns: dict[str, str] = field(default_factory=dict)
    computed: dict[ir.Value, Tensor] = field(default_factory=dict)
    held: dict[fx.Node, Tensor] = field(default_factory=dict)
    turns: dict[ir.Value, fx.Node] = field(default_factory=dict)

    def add_input(self, value: ir.Value, tensor: Tensor) -> None:
        """A placeholder; inputs come before weights."""
        node = self.graph.placeholder(f"input_{len(self.inputs)}")
        self.inputs.append(value.name or "")
        self.note(value, node, tensor)

    def note(self, value: ir.Value, node: fx.Node, tensor: Tensor) -> None:
        """`node` computes `value`, which is `tensor` for the example."""
        node.meta["example_value"] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        node.meta[VALUE] = value
        self.nodes[value], self.computed[value], self.held[node] = node, tensor, tensor

    def add(self, node: ir.Node) -> None:
        """The node's outputs: as numbers where they can be known, else as torch or ONNX Runtime computes them."""
        if any(
            each.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for each in node.attributes.values()
        ):
            raise ModelError(
                f"cannot read the model: it has control flow already ({node.op_type} {node.name})"
            )
        call = OnnxCall(node)
        if (
            all(value is None or self.number(value) is not None for value in node.inputs)
            or node.op_type == "Shape"
        ):
            held = [None if value is None else self.tensor(value) for value in node.inputs]
            for value, tensor in zip(node.outputs, call.run(held), strict=True):
                self.known[value] = self.computed[value] = tensor
            return
        spelled = SPELLINGS.get(node.op_type) if node.domain in {"", "ai.onnx", "com.microsoft"} else None
        found = None if spelled is None else spelled(self, node)
        if found is not None:
            self._spelled(node.outputs[0], *found)
            return
        self._call(node, call)

    def _spelled(
        self, value: ir.Value, target: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given, named = fx.map_arg((args, kwargs), self.held.__getitem__)
        if isinstance(target, str):
            made, result = (
                self.graph.call_method(target, args, kwargs),
                getattr(given[0], target)(*given[1:], **named),
            )
        else:
            made, result = self.graph.call_function(target, args, kwargs), target(*given, **named)
        self.note(value, made, result)

    def turned(self, value: ir.Value) -> fx.Node:
        """A weight [K, N] as [N, K]."""
        if value not in self.turns:
            weight = self.node(value)
            made = self.turns[value] = self.graph.call_method("t", (weight,))
            self.held[made] = self.held[weight].t()
            made.meta["example_value"] = self.fake_mode.from_tensor(self.held[made], static_shapes=True)
        return self.turns[value]

    def _call(self, node: ir.Node, call: OnnxCall) -> None:
        args = tuple(None if value is None else self.node(value) for value in node.inputs)
        results = call.run([None if value is None else self.tensor(value) for value in node.inputs])
        made = self.graph.call_function(call, args)
        if len(node.outputs) == 1:
            self.note(node.outputs[0], made, results[0])
            return
        made.meta["example_value"] = tuple(
            self.fake_mode.from_tensor(each, static_shapes=True) for each in results
        )
        for at, (value, tensor) in enumerate(zip(node.outputs, results, strict=True)):
            self.note(value, self.graph.call_function(_item, (made, at)), tensor)

    def number(self, value: ir.Value) -> Tensor | None:
        """What is known without running the model, weights not counted: constants, and what follows from them."""
        if value in self.known:
            return self.known[value]
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or self.is_weight(value):
            return None
        self.known[value] = self.computed[value] = torch.from_numpy(tensor.numpy().copy())
        return self.known[value]

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether `value` is a floating-point initializer with more than one element."""
        if value is None or value.const_value is None or value.is_graph_input():
            return False
        return value.dtype is not None and value.dtype.is_floating_point() and value.const_value.size > 1

    def tensor(self, value: ir.Value) -> Tensor:
        """The value for the example."""
        if value not in self.computed and self.number(value) is None:
            self.node(value)
        return self.computed[value]

    def node(self, value: ir.Value) -> fx.Node:
        """The node for `value`: a placeholder for a weight, a constant for what is known."""
        if value in self.nodes:
            return self.nodes[value]
        if self.is_weight(value):
            assert value.const_value is not None
            tensor = torch.from_numpy(value.const_value.numpy().copy())
            made = self._first(f"weight_{len(self.weights)}")
            self.weights[made.name], self.fqns[made.name] = tensor, value.name or ""
        else:
            tensor = self.tensor(value)
            made = self.graph.call_function(_Constant(tensor))
        self.note(value, made, tensor)
        return made

    def _first(self, name: str) -> fx.Node:
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after(placeholders[-1]):
            return self.graph.placeholder(name)

    def finish(self) -> Mirror:
        """Close the graph."""
        self.graph.output(tuple(self.node(value) for value in self.model.graph.outputs))
        for node in reversed(self.graph.nodes):
            if not node.users and node.op.startswith("call"):
                self.graph.erase_node(node)
        gm = fx.GraphModule(torch.nn.Module(), self.graph)
        return Mirror(gm, self.inputs, self.weights, self.fqns, self.fake_mode)


def _item(values: Any, at: int) -> Any:
    return values[at]


class _Constant:
    """A function without arguments that gives a tensor: a constant of the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.__name__ = "constant"
        self.__module__ = __name__
        self.__qualname__ = "constant"

    def __call__(self) -> Tensor:
        return self._tensor
