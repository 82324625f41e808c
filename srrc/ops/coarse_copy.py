"""Makes the coarse copy of a vocabulary head that `srr::vocab_head` reads: int8, by channel."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.vocab_head import SCALE_BLOCK


@dataclass(frozen=True, eq=False)
class CoarseCopy:
    """A head W [V, H] seen from y = rotation @ (x - mean): W x + bias is about (coarse * scale) y + its bias.

    coarse: int8 [V, H], strides (1, V); scale: float32 [ceil(V / SCALE_BLOCK), H]
    bias:   float32 [V], W mean + bias; V may have been rounded up for both, with zeros
    norm:   float32 [H], the L2 norm of each channel's column: what the channel is worth at size one
    """

    coarse: Tensor
    scale: Tensor
    bias: Tensor
    norm: Tensor


def coarse_copy(
    weight: Tensor, bias: Tensor | None, inverse: Tensor, mean: Tensor, *, multiple: int = 1
) -> CoarseCopy:
    """Round W @ inverse to int8, a block of tokens at a time, so that no wide copy of W is ever held.

    weight [V, H], any dtype and strides; bias [V] or None; inverse float32 [H, H], of the rotation; mean
    float32 [H]. multiple: a divisor of SCALE_BLOCK, whose multiple the copy's tokens are to be.
    """
    vocabulary, width = weight.shape
    device = weight.device
    padding = -vocabulary % multiple
    by_channel = torch.empty(width, vocabulary + padding, dtype=torch.int8, device=device)
    by_channel[:, vocabulary:] = 0
    scales, sums, squares = [], [], torch.zeros(width, dtype=torch.float32, device=device)
    # Two blocks that are written over again: fresh ones would leave holes of hundreds of megabytes in the heap.
    height = min(vocabulary, SCALE_BLOCK)
    wide, other = torch.empty(2, height, width, dtype=torch.float32, device=device)
    with torch.no_grad():
        for start in range(0, vocabulary, SCALE_BLOCK):
            block = weight[start : start + SCALE_BLOCK]
            rows, turned = wide[: len(block)].copy_(block), other[: len(block)]
            torch.mm(rows, inverse, out=turned)
            sums.append(rows @ mean)
            squares += torch.mul(turned, turned, out=rows).sum(0)
            scale = torch.abs(turned, out=rows).amax(0) / 127
            scale[scale == 0] = 1.0
            scales.append(scale)
            by_channel[:, start : start + len(block)] = turned.div_(scale).round_().t()
        total = torch.cat(sums)
        total = total if bias is None else total + bias.to(torch.float32)
        total = F.pad(total, (0, padding)) if padding else total
    return CoarseCopy(by_channel.t(), torch.stack(scales), total, squares.sqrt())
