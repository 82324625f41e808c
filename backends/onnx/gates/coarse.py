"""`srr::coarse_linear` is com.microsoft::MatMulNBits, ONNX Runtime's own operator for weights of few bits."""

import torch
from torch import Tensor

from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.symbolic import symbolic
from srrc.ops.coarse_linear import BLOCK

_INT8_ACTIVATIONS = 4
"""`accuracy_level`: rows are rounded to int8 in blocks, which is where the kernels are fast."""


def lower(lowering: Lowering) -> None:
    """Replace every `srr::coarse_linear` of a graph."""
    graph = lowering.gm.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.srr.coarse_linear.default):
        with graph.inserting_before(node):
            lowering.replace(node, coarse_product, node.args)


def coarse_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Exports as com.microsoft::MatMulNBits, and an Add where there is a bias."""
    outputs, inputs = codes.shape[0], x.shape[-1]
    attributes = {"K": int(inputs), "N": int(outputs), "bits": bits, "block_size": BLOCK}
    attributes |= {"accuracy_level": _INT8_ACTIVATIONS}
    shape = (*x.shape[:-1], outputs)
    made = symbolic(
        "com.microsoft::MatMulNBits", (x, codes, scale.to(x.dtype)), shape, x.dtype, dict(attributes)
    )
    return made if bias is None else made + bias
