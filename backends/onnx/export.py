"""From a Dynamo graph to an ONNX model: torch's own exporter, and then names that other programs know."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from srrc.backends.onnx.interfaces.base import Interface
from srrc.backends.onnx.trace import Held, Input, Size, Traced, Weight
from srrc.errors import ModelError

OPSET = 23
"""The opset in which torch exports attention, rotary embedding and RMS norm as one operator each, with kernels for all
of them in ONNX Runtime."""


def export(interface: Interface, traced: Traced, gm: fx.GraphModule) -> ir.Model:
    """The ONNX model of `gm`, which takes and gives what `traced.gm` does.

    Inputs, outputs, axes and weights have their names from the interface and the user's model. Weights are not copied.
    Raises ModelError where an operator has no counterpart in ONNX.
    """
    flat = Flat(interface, traced, gm)
    axes = [interface.axes.get(name, {}) for name in interface.example]
    shapes = tuple(dict.fromkeys(each, Dim.AUTO) for each in axes)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                flat, tuple(interface.example.values()), dynamic_shapes=(shapes,), strict=False
            )
            exported = torch.onnx.export(
                program, opset_version=OPSET, dynamo=True, optimize=True, verify=False, verbose=False
            )
    except Exception as error:
        raise ModelError(f"cannot export: {_reason(error)}") from error
    assert exported is not None
    model: ir.Model = exported.model
    _name_values(model, [*interface.example], interface.outputs)
    _name_axes(model, axes)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices about packages that are not installed, and about itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class Flat(nn.Module):
    """The graph as a module that takes the interface's tensors. The weights are the user's own."""

    def __init__(self, interface: Interface, traced: Traced, gm: fx.GraphModule) -> None:
        super().__init__()
        self.held = interface.module
        self._run: Callable[..., Any] = gm.forward
        self._sources, self._outputs = traced.sources, traced.outputs
        self.gates = nn.Module()
        for name, buffer in gm.named_buffers():
            self.gates.register_buffer(name, buffer)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The interface's inputs in order -> its outputs in order."""
        arguments = [self._argument(source, tensors) for source in self._sources]
        found = self._run(*arguments)
        return tuple(found[position] for position in self._outputs)

    def _argument(self, source: Any, tensors: Sequence[Tensor]) -> Any:
        match source:
            case Weight(name):
                parent, _, leaf = f"model.{name}".rpartition(".")
                return getattr(self.held.get_submodule(parent), leaf)
            case Input(position):
                return tensors[position]
            case Size(position, dimension):
                return tensors[position].shape[dimension]
            case Held(tensor):
                return tensor


def _name_values(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs, outputs and weights their names; a value of the graph that has one of them gets another."""
    graph = model.graph
    taken = {*inputs, *outputs}
    for value in _values(model):
        if value.name in taken:
            value.name = f"{value.name}_"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    for value in list(graph.initializers.values()):
        assert value.name is not None
        if value.name.startswith("held.model."):
            value.name = value.name.removeprefix("held.model.")


def _name_axes(model: ir.Model, axes: Sequence[Mapping[int, str]]) -> None:
    """Replace torch's symbols by the names of the axes that they stand for, in every shape of the graph."""
    symbols: dict[str, str] = {}
    for value, named in zip(model.graph.inputs, axes, strict=True):
        for dimension, axis in named.items():
            size = value.shape[dimension] if value.shape is not None else None
            if (
                isinstance(size, ir.SymbolicDim)
                and size.value is not None
                and re.fullmatch(r"\w+", str(size.value))
            ):
                symbols.setdefault(str(size.value), axis)
    for value in _values(model):
        if value.shape is not None:
            for dimension, size in enumerate(value.shape):
                if isinstance(size, ir.SymbolicDim) and size.value is not None:
                    named_size = re.sub(
                        r"\w+", lambda found: symbols.get(found[0], found[0]), str(size.value)
                    )
                    value.shape[dimension] = named_size


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: torch wraps it several times, in pages of advice."""
    cause: BaseException | None = error
    innermost = error
    while cause is not None:
        innermost, cause = cause, cause.__cause__ or cause.__context__
    lines = [line.strip() for line in str(innermost).splitlines() if line.strip()]
    return f"{type(innermost).__name__}: {lines[0] if lines else ''}"
