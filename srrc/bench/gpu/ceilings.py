"""What this card can do, which measurements are told as a share of."""

from collections.abc import Iterator

import torch

from srrc.bench.gpu.record import Ceilings, Check
from srrc.bench.gpu.timing import milliseconds

NAME = "ceilings"


def checks() -> Iterator[Check]:
    """Nothing."""
    return iter(())


def measurements() -> Iterator[Ceilings]:
    """What is reached by whichever moves more of a copy and a sum over 1 GiB, and by a large bf16 product."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    scaled = 2 * size / milliseconds([lambda: torch.mul(source, 1.5, out=target)])
    summed = size / milliseconds([source.sum])
    a, b = torch.randn(2, 8192, 8192, device="cuda").to(torch.bfloat16).unbind()
    product = milliseconds([lambda: a @ b])
    yield Ceilings(1e3 * max(scaled, summed), 1e3 * 2 * 8192**3 / product)
