"""The vocabulary head with candidate blocks against cuBLAS's dense one, at shapes of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.vocab_head import Config, candidate_blocks, configs, reference, vocab_head
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "vocab_head"

SHAPES = {"8B": (4096, 128256), "SmolLM2": (576, 49152)}
"""(inputs, vocabulary)"""

BLOCK = 64


def masks(vocabulary: int, kept: float, count: int) -> list[Tensor]:
    """Random candidates, exactly a fraction of the blocks; different ones, so that caches do not hold them all."""
    blocks = -(-vocabulary // BLOCK)
    chosen = [torch.randperm(blocks, device="cuda")[: round(kept * blocks)] for _ in range(count)]
    return [torch.zeros(blocks, dtype=torch.bool, device="cuda").index_fill_(0, c, True) for c in chosen]


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, rows, fractions, sizes that are no multiples of a block, weights of eight bits."""
    torch.manual_seed(0)
    for dtype, rows, (inputs, vocabulary) in (
        (torch.float32, 1, (1000, 3333)),
        (torch.float32, 3, (576, 4096)),
        (torch.float16, 1, (1000, 3333)),
        (torch.float16, 5, (1000, 3333)),
        (torch.bfloat16, 1, (4096, 4096)),
        (torch.bfloat16, 8, (4096, 4096)),
    ):
        x = torch.randn(rows, inputs, device="cuda").to(dtype)
        weight = (torch.randn(vocabulary, inputs, device="cuda") / inputs**0.5).to(dtype)
        coarse = torch.randn(rows, vocabulary, device="cuda")
        for kept in (0.0, 0.25, 1.0):
            (mask,) = masks(vocabulary, kept, 1)
            case = f"{dtype}, {rows} x {inputs} x {vocabulary}, {kept} exact"
            yield check(NAME, case, vocab_head(x, weight, mask, coarse), reference(x, weight, mask, coarse))
    for rows in (1, 4):
        x = torch.randn(rows, 1024, device="cuda").to(torch.bfloat16)
        weight = torch.randint(-127, 128, (2048, 1024), device="cuda", dtype=torch.int8)
        coarse = torch.randn(rows, 2048, device="cuda").to(torch.bfloat16)
        scale, mask = torch.rand(2048, device="cuda"), candidate_blocks(coarse, 5)
        found = vocab_head(x, weight, mask, coarse, scale, coarse[0])
        yield check(NAME, f"int8, {rows} rows", found, reference(x, weight, mask, coarse, scale, coarse[0]))


def measurements() -> Iterator[Measurement]:
    """The best configuration of the space at each shape and rows, found at a quarter."""
    torch.manual_seed(0)
    for name, (inputs, vocabulary) in SHAPES.items():
        one = torch.randn(vocabulary, inputs, device="cuda", dtype=torch.bfloat16)
        weights = [w for (w,) in copies(one.mul_(inputs**-0.5))]
        for rows in (1, 4):
            x = torch.randn(rows, inputs, device="cuda").to(torch.bfloat16)
            coarse = torch.randn(rows, vocabulary, device="cuda")
            others = {"cuBLAS": milliseconds([partial(F.linear, x, w) for w in weights])}
            quarter = masks(vocabulary, 0.25, _calls(one, 0.25))
            best = next(iter(quickest(configs(rows), partial(_time, x, weights, quarter, coarse))))
            for kept in (1.0, 0.25, 0.1):
                ms = _time(x, weights, masks(vocabulary, kept, _calls(one, kept)), coarse, best)
                size = 2.0 * kept * vocabulary * inputs + rows * (
                    2 * inputs + vocabulary * (2 + 4 * (1 - kept))
                )
                flops = 2.0 * kept * rows * vocabulary * inputs
                case = f"{name}, {rows} rows, {kept} exact"
                yield Measurement(NAME, case, ms, others, size, flops, config=str(best))


def _calls(weight: Tensor, kept: float) -> int:
    """So many in turn read more than a cache holds."""
    return max(6, -(-(256 << 20) // int(kept * weight.numel() * weight.element_size())))


def _time(x: Tensor, weights: list[Tensor], chosen: list[Tensor], coarse: Tensor, config: Config) -> float:
    calls = [
        partial(vocab_head, x, weights[i % len(weights)], mask, coarse, block=BLOCK, config=config)
        for i, mask in enumerate(chosen)
    ]
    return milliseconds(calls)
