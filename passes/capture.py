"""Reads what Dynamo says of a graph: which inputs are parameters, and what they are called in the model."""

import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor, FakeTensorMode

_KEY = re.compile(r"(?:_modules|_parameters|_buffers)\['([^']+)'\]")


def parameter_names(gm: fx.GraphModule, example_inputs: Sequence[object]) -> dict[str, str]:
    """Map placeholder name -> fully qualified name, for the placeholders that hold a parameter or buffer.

    Dynamo lifts parameters to inputs and marks them; the name comes from the path along which it found them.
    Where two models in one graph have a parameter of the same name, the whole path is the name.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node, example in zip(placeholders(gm), example_inputs, strict=True):
        if not is_parameter(node, example):
            continue
        path = _path(node)
        name = ".".join(_KEY.findall(path)) or path
        if name in taken:
            name = path
        taken.add(name)
        names[node.name] = name
    return names


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    """The graph's inputs in the order of its arguments."""
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def is_parameter(node: fx.Node, example: object) -> bool:
    """True for a parameter, or a buffer of a module, that stays the same tensor from call to call.

    A static cache's tensors stay the same too, and Dynamo marks them alike; but they belong to no module, and every
    call writes to them.
    """
    if isinstance(example, torch.nn.Parameter):
        return True
    fixed = "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})
    return isinstance(example, torch.Tensor) and fixed and _KEY.search(_path(node)) is not None


def needs_gradients(example_inputs: Sequence[object]) -> bool:
    """True where autograd records this call."""
    return torch.is_grad_enabled() and any(
        isinstance(example, torch.Tensor) and example.requires_grad for example in example_inputs
    )


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode:
    """The mode that the graph's values were traced under (the tracing context already holds another by now)."""
    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def fresh(model: torch.nn.Module) -> Callable[..., Any]:
    """A function that calls the model, with a code object of its own: what Dynamo caches on it goes with it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)


def _path(node: fx.Node) -> str:
    """Dynamo's path to an input, such as `L['self']._modules['lm_head']._parameters['weight']`."""
    argument = node.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", node.name)
    return str(name() if callable(name) else name)
