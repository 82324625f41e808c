"""`srr::coarse_linear` is com.microsoft::MatMulNBits, ONNX Runtime's own operator for weights of few bits."""

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.backends.onnx.symbolic import symbolic
from srrc.ops.coarse_linear import BLOCK
from srrc.passes.emit import emit
from srrc.passes.linear_arguments import replace

_INT8_ACTIVATIONS = 4
"""`accuracy_level`: rows are rounded to int8 in blocks, which is where the kernels are fast."""


def lower(gm: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
    """Replace every `srr::coarse_linear` of a graph."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.srr.coarse_linear.default):
        with gm.graph.inserting_before(node):
            result = emit(gm.graph, coarse_product, node.args, fake_mode)
        replace(gm.graph, (node,), node, result)


def coarse_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Exports as com.microsoft::MatMulNBits, and an Add where there is a bias."""
    outputs, inputs = codes.shape[0], x.shape[-1]
    attributes = {"K": int(inputs), "N": int(outputs), "bits": bits, "block_size": BLOCK}
    attributes |= {"accuracy_level": _INT8_ACTIVATIONS}
    shape = (*x.shape[:-1], outputs)
    made = symbolic("com.microsoft::MatMulNBits", (x, codes, scale.to(x.dtype)), shape, x.dtype, dict(attributes))
    return made if bias is None else made + bias
