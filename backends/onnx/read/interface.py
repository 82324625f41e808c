"""What an existing ONNX file takes and gives, as an interface."""

from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from srrc.backends.onnx.interfaces.base import BATCH, PAST, SEQUENCE, SIZES, TOTAL, Interface
from srrc.backends.onnx.session import Session
from srrc.errors import ModelError


class OnnxModule(nn.Module):
    """A file, run by ONNX Runtime: what stands for eager where there is no torch model.

    vocabulary: of its logits, None where it has none
    """

    def __init__(self, path: Path, names: list[str], outputs: list[str], vocabulary: int | None) -> None:
        super().__init__()
        self._session, self._names, self._outputs = Session(path), names, outputs
        self.vocabulary = vocabulary

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The file's inputs in order -> its outputs in order."""
        found = self._session.run(dict(zip(self._names, tensors, strict=True)))
        return tuple(found[name] for name in self._outputs)


def load(path: Path) -> ir.Model:
    """Read a file, its weights mapped and not read. Raises ModelError where it is none."""
    try:
        return ir.load(path)
    except Exception as error:  # whatever a broken file makes protobuf raise
        raise ModelError(f"{path} is no ONNX model: {str(error).strip().splitlines()[0][:200]}") from error


def read_interface(model: ir.Model, path: Path) -> Interface:
    """The interface of a file. Axes are told by the names of inputs that are known, else by position.

    Raises ModelError for an input whose rank is not known, and for a model that computes nothing.
    """
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    outputs = [value.name or "" for value in model.graph.outputs]
    if not inputs or not outputs:
        raise ModelError(f"{path} has no inputs, or no outputs")
    cached = any((value.name or "").startswith("past_key_values.") for value in inputs)
    example: dict[str, Tensor] = {}
    axes: dict[str, dict[int, str]] = {}
    for value in inputs:
        name = value.name or ""
        if value.shape is None or value.dtype is None:
            raise ModelError(f"{path} does not say what shape its input {name} has")
        free = [at for at, size in enumerate(value.shape) if not isinstance(size, int)]
        axes[name] = {at: _axis(name, at, position, cached=cached) for position, at in enumerate(free)}
        shape = [
            size if isinstance(size, int) else SIZES[axes[name][at]] for at, size in enumerate(value.shape)
        ]
        dtype = torch.from_numpy(value.dtype.numpy().type(0).reshape(1)).dtype
        example[name] = torch.ones(shape, dtype=dtype)
    return Interface(
        path.stem, OnnxModule(path, [*example], outputs, _vocabulary(model)), example, axes, tuple(outputs)
    )


def _axis(name: str, dimension: int, position: int, *, cached: bool) -> str:
    """The name of a free dimension; position: which of the input's free ones it is."""
    if position == 0:
        return BATCH
    if name.startswith("past_key_values."):
        return PAST
    return TOTAL if cached and name == "attention_mask" else SEQUENCE


def _vocabulary(model: ir.Model) -> int | None:
    for value in model.graph.outputs:
        if value.name == "logits" and value.shape is not None and isinstance(value.shape[-1], int):
            return value.shape[-1]
    return None
