"""Small files over the weights of a gated one, each at a budget of its own: for programs that cannot set thresholds.

The JavaScript binding of ONNX Runtime, for one, takes no input that has a default.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.save import INLINE_BYTES
from srrc.errors import ModelError


def variant_path(path: Path, budget: float) -> Path:
    """Where the file of a budget stands beside the gated one: model.onnx -> model-0.6.onnx."""
    return path.with_name(f"{path.stem}-{budget:g}{path.suffix}")


def write_variants(path: Path, thresholds: Mapping[float, Sequence[float]]) -> list[Path]:
    """For each budget a file without the input `srrc_thresholds`, which has these instead. Its weights are `path`'s."""
    written = []
    for budget, limits in thresholds.items():
        model = ir.load(path)
        graph = model.graph
        given = next(value for value in graph.inputs if value.name == THRESHOLDS)
        given.const_value = ir.tensor(np.array(limits, dtype=np.float32), name=THRESHOLDS)
        graph.inputs.remove(given)
        written.append(variant_path(path, budget))
        ir.save(model, written[-1])
    return written


def write_dense(model: ir.Model, path: Path) -> Path:
    """Write `model`, the same without gates, over the weights of the gated file at `path`.

    Raises ModelError where it has a weight that the other has not.
    """
    held = ir.load(path).graph.initializers
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES:
            continue
        known = held[name].const_value if name in held else None
        if known is None or known.shape != tensor.shape or known.dtype != tensor.dtype:
            raise ModelError(f"{path.name} does not hold {name}, which the file without gates reads")
        value.const_value = known
    written = variant_path(path, 1.0)
    ir.save(model, written)
    return written
