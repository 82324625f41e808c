"""ONNX Runtime's own weight quantiser, run over a file: constant matrices become `MatMulNBits`, in subgraphs too."""

import logging
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
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    config = quantizer.DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=bits == 8, accuracy_level=4, bits=bits
    )
    log = logging.getLogger(quantizer.__name__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        made = quantizer.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
        made.process()
    finally:
        log.setLevel(level)
    return save(ir.from_proto(made.model.model), path)
