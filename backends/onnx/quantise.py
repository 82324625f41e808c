"""ONNX Runtime's own weight quantiser, run over a file: constant matrices become `MatMulNBits`, in subgraphs too."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import import_onnxruntime
from srrc.ops.coarse_linear import BLOCK

BITS = {"int8": 8, "int4": 4}
"""Precision -> bits of a weight."""


def quantise(path: Path, bits: int) -> Path:
    """Quantise the weights of `path` in place, external data included. Returns `path`.

    Symmetric for 8 bits, with zero points for 4, in blocks of 128 inputs, activations rounded to int8: what measured
    fastest.
    """
    import onnx

    import_onnxruntime()
    with _quiet():
        from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

        config = quantizer.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=bits == 8, accuracy_level=4, bits=bits
        )
        made = quantizer.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
        made.process()
    return save(ir.from_proto(made.model.model), path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for each weight; and with the root logger as it was, which importing the quantiser sets up."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers
