"""`srr::coarse_linear` is com.microsoft::MatMulNBits, ONNX Runtime's own operator for weights of few bits."""

import torch
from torch import Tensor

from srrc.backends.onnx.lowering import Lowering
from srrc.backends.onnx.symbolic import symbolic
from srrc.ops.coarse_linear import BLOCK

_INT8_ACTIVATIONS = 4
"""`accuracy_level`: rows are rounded to int8 in blocks, which is where the kernels are fast."""


def product_attributes(inputs: int, outputs: int, bits: int) -> dict[str, int]:
    """The attributes of a MatMulNBits over codes as `srr::coarse_linear` lays them out."""
    return {
        "K": inputs,
        "N": outputs,
        "bits": bits,
        "block_size": BLOCK,
        "accuracy_level": _INT8_ACTIVATIONS,
    }


def lower(lowering: Lowering) -> None:
    """Replace every `srr::coarse_linear` of a graph."""
    graph = lowering.gm.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.srr.coarse_linear.default):
        with graph.inserting_before(node):
            lowering.replace(node, coarse_product, node.args)


def coarse_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Exports as com.microsoft::MatMulNBits, and an Add where there is a bias."""
    outputs, inputs = codes.shape[0], x.shape[-1]
    shape = (*x.shape[:-1], outputs)
    attributes = product_attributes(int(inputs), int(outputs), bits)
    made = symbolic("com.microsoft::MatMulNBits", (x, codes, scale.to(x.dtype)), shape, x.dtype, attributes)
    return made if bias is None else made + bias
