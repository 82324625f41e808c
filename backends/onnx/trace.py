"""Captures what an exported file is to compute as one Dynamo graph: the one that `torch.compile` would hand over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from srrc.backends.onnx.interfaces.base import Interface
from srrc.errors import ModelError
from srrc.passes.capture import fake_mode_of, fresh, parameter_names, placeholders
from srrc.pathways.graph_view import size


@dataclass(frozen=True)
class Weight:
    """A placeholder that holds a parameter or buffer of the user's model, by its name there."""

    name: str


@dataclass(frozen=True)
class Input:
    """A placeholder that holds one of the file's inputs."""

    position: int


@dataclass(frozen=True)
class Size:
    """A placeholder that holds the size of one dimension of an input."""

    position: int
    dimension: int


@dataclass(frozen=True, eq=False)
class Held:
    """A placeholder that holds a tensor of nobody's: a constant."""

    tensor: Tensor


Source = Weight | Input | Size | Held


@dataclass(frozen=True, eq=False)
class Traced:
    """One captured graph.

    gm:      as Dynamo gave it; passes work on copies
    fqns:    placeholder -> name of the parameter or buffer it holds, in the user's model
    weights: the same placeholders -> the tensors
    sources: where the value of each placeholder comes from, in their order
    outputs: position among the graph's outputs of each of the interface's
    axes:    the interface's axes, without those that the model runs at one size only
    """

    gm: fx.GraphModule
    fqns: Mapping[str, str]
    weights: Mapping[str, Tensor]
    sources: Sequence[Source]
    outputs: Sequence[int]
    fake_mode: FakeTensorMode
    axes: Mapping[str, Mapping[int, str]]


def trace(interface: Interface) -> Traced:
    """Capture `interface.module` for its example, with its axes as symbols.

    Raises ModelError where Dynamo breaks it into several graphs, or where an output is not computed by the graph.
    """
    seen: list[tuple[fx.GraphModule, dict[str, str], tuple[Any, ...], tuple[Any, ...]]] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        names = parameter_names(gm, example_inputs)

        def run(*args: Any) -> Any:
            outputs = fx.Interpreter(gm).run(*args)
            seen.append((gm, names, args, tuple(outputs)))
            return outputs

        return run

    tensors = [tensor.clone() for tensor in interface.example.values()]
    for name, tensor in zip(interface.example, tensors, strict=True):
        for dimension in interface.axes.get(name, {}):
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    try:
        with torch.no_grad():
            results = torch.compile(fresh(interface.module), backend=backend, fullgraph=True)(*tensors)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        raise error.inner_exception from error
    except torch._dynamo.exc.Unsupported as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot export: Dynamo does not capture the model as one graph ({first})"
        ) from error
    ((gm, names, args, outputs),) = seen
    sources = _sources(interface.module, gm, names, args, tensors)
    return Traced(
        gm,
        {node: name.removeprefix("model.") for node, name in names.items()},
        {node.name: arg for node, arg in zip(placeholders(gm), args, strict=True) if node.name in names},
        sources,
        [_position(result, outputs, name) for result, name in zip(results, interface.outputs, strict=True)],
        fake_mode_of(gm),
        _free_axes(interface, gm, sources),
    )


def _sources(
    module: nn.Module,
    gm: fx.GraphModule,
    names: Mapping[str, str],
    args: Sequence[Any],
    tensors: Sequence[Tensor],
) -> list[Source]:
    buffers = {id(buffer): name for name, buffer in module.named_buffers(remove_duplicate=False)}
    sizes: dict[Any, Size] = {}
    sources: list[Source | None] = []
    for node, arg in zip(placeholders(gm), args, strict=True):
        if node.name in names:
            sources.append(Weight(names[node.name].removeprefix("model.")))
        elif not isinstance(arg, Tensor):
            sources.append(None)
        elif id(arg) in buffers:
            sources.append(Weight(buffers[id(arg)].removeprefix("model.")))
        else:
            position = next((at for at, tensor in enumerate(tensors) if tensor is arg), None)
            sources.append(Held(arg) if position is None else Input(position))
            if position is not None:
                for dimension, extent in enumerate(node.meta["example_value"].shape):
                    if isinstance(extent, torch.SymInt):
                        sizes.setdefault(extent.node.expr, Size(position, dimension))
    found: list[Source] = []
    for node, source in zip(placeholders(gm), sources, strict=True):
        if source is None:
            expression = node.meta["example_value"].node.expr
            if expression not in sizes:
                raise ModelError(
                    f"cannot export: the graph takes a number ({node.name}) that is no size of an input"
                )
            source = sizes[expression]  # noqa: PLW2901
        found.append(source)
    return found


def _free_axes(
    interface: Interface, gm: fx.GraphModule, sources: Sequence[Source]
) -> dict[str, dict[int, str]]:
    """The axes that Dynamo kept as symbols: a loop over positions, say, is written out for the example's length.

    Raises ModelError where an axis of a cache, or of what is read beside one, is not free.
    """
    shapes = {
        source.position: node.meta["example_value"].shape
        for node, source in zip(placeholders(gm), sources, strict=True)
        if isinstance(source, Input)
    }
    cached = any(name.startswith("past_key_values") for name in interface.example)
    found: dict[str, dict[int, str]] = {}
    for position, name in enumerate(interface.example):
        shape = shapes.get(position)
        found[name] = {}
        for dimension, axis in interface.axes.get(name, {}).items():
            if shape is None or size(shape[dimension]).free_symbols:
                found[name][dimension] = axis
            elif cached:
                raise ModelError(f"cannot export: the model fixes {axis} (of {name}) at {shape[dimension]}")
    return found


def _position(result: Tensor, outputs: Sequence[Any], name: str) -> int:
    for index, output in enumerate(outputs):
        if output is result:
            return index
    raise ModelError(f"cannot export: the output {name} is computed outside the graph that Dynamo captured")
