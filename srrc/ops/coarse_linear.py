"""srr::coarse_linear: a linear that reads a coarse copy of its weight, where the full one is not worth reading.

    coarse_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias, int bits) -> Tensor

x [..., K]; codes uint8 [N, ceil(K / BLOCK), BLOCK * bits / 8], `8 / bits` inputs a byte, the first in the low bits;
scale float32 [N, ceil(K / BLOCK)]; bias [N] or None; bits 4 or 8 -> contiguous [..., N].
A weight is scale * (code - 2**(bits - 1)): symmetric rounding in blocks of successive inputs. x is rounded to int8 in
the same blocks, each row for itself, so that products are of whole numbers. Layout and rounding are those of ONNX
Runtime's MatMulNBits at accuracy level 4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.register import Grads, Needs, register

BLOCK = 128
"""Inputs that share a scale. Blocks of 32 are half as far from the weights, and in ONNX Runtime half as fast."""


_ELEMENTS = 1 << 16
"""Elements that are widened at once: a whole vocabulary head needs several times its own size, and larger pieces
between tensors that are kept tear holes into the heap."""


def coarse_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes, scale) of a weight [N, K], any floating dtype and strides."""
    outputs, inputs = weight.shape
    blocks = -(-inputs // BLOCK)
    codes = torch.empty(outputs, blocks, BLOCK * bits // 8, dtype=torch.uint8)
    scale = torch.empty(outputs, blocks, dtype=torch.float32)
    height = max(1, _ELEMENTS // max(1, inputs))
    for start in range(0, outputs, height):
        rows = slice(start, start + height)
        codes[rows], scale[rows] = _coarse_rows(weight[rows], blocks, bits)
    return codes, scale


def _coarse_rows(weight: Tensor, blocks: int, bits: int) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    wide = torch.zeros(outputs, blocks * BLOCK, dtype=torch.float32)
    wide[:, :inputs] = weight.detach()
    wide = wide.view(outputs, blocks, BLOCK)
    half = 1 << (bits - 1)
    # The largest of a block, with its sign, becomes -half: the one code that the other side does not have.
    largest = wide.gather(-1, wide.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scale = largest / -half
    steps = torch.where(scale == 0, torch.ones(()), scale)
    codes = ((wide / steps[..., None]).round() + half).clamp(0, 2 * half - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scale


def full_weight(codes: Tensor, scale: Tensor, inputs: int, bits: int) -> Tensor:
    """The weight [N, K] that the codes stand for, float32."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    wide = (codes.to(torch.float32) - float(1 << (bits - 1))) * scale[..., None]
    return wide.flatten(1)[:, :inputs]


def rounded(x: Tensor) -> Tensor:
    """X [..., K] rounded to int8 in blocks of a row: the same shape and dtype."""
    inputs = x.shape[-1]
    blocks = F.pad(x.to(torch.float32), (0, -inputs % BLOCK)).reshape(*x.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale == 0, torch.ones(()), scale)
    whole: Tensor = (blocks / steps).round() * scale
    return whole.flatten(-2)[..., :inputs].to(x.dtype)


def reference(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """The truth: `F.linear` of the rounded input with the weight that the codes stand for."""
    weight = full_weight(codes, scale, x.shape[-1], bits).to(x.dtype)
    return F.linear(rounded(x), weight, bias).contiguous()


def fake(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def backward(
    grad: Tensor, needs: Needs, *, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int
) -> Grads:
    """Gradients of x, as if it were not rounded, and of the bias; the codes have none."""
    found: dict[str, Tensor | None] = {}
    if needs["x"]:
        found["x"] = grad @ full_weight(codes, scale, x.shape[-1], bits).to(grad.dtype)
    if needs["bias"] and bias is not None:
        found["bias"] = grad.reshape(-1, grad.shape[-1]).sum(0)
    return found


op = register(
    "coarse_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias, int bits) -> Tensor",
    reference,
    fake,
    backward,
)
