"""Writes an ONNX model, its weights beside it."""

from pathlib import Path

import onnx_ir as ir

INLINE_BYTES = 1024
"""Tensors up to this size stay in the model's own file, where shape inference can read them."""


def save(model: ir.Model, path: Path) -> Path:
    """Write `path` and, where it has weights, `path`.data. Tensors are written one at a time. Returns `path`."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=INLINE_BYTES)
    return path
