"""The channel-sparse linear against cuBLAS's dense one, at shapes of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.select import select
from srrc.backends.triton.kernels.sparse_linear import (
    Config,
    configs,
    reference,
    sparse_linear,
)
from srrc.bench.gpu.lists import same_lists
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "sparse_linear"

SHAPES = {
    "8B o": (4096, 4096),
    "8B qkv": (4096, 6144),
    "8B gate, up": (4096, 28672),
    "8B down": (14336, 4096),
}
SHAPES |= {"SmolLM2 gate, up": (576, 3072), "SmolLM2 down": (1536, 576)}
"""(inputs, outputs)"""


def by_input(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """A random weight laid out by input."""
    weight: Tensor = torch.randn(inputs, outputs, device="cuda") / inputs**0.5
    return weight.to(dtype).t()


def masked(rows: int, inputs: int, kept: float, dtype: torch.dtype) -> Tensor:
    """Random rows of which exactly a fraction is not zero, the same channels for all."""
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    x[:, torch.randperm(inputs, device="cuda")[: inputs - round(kept * inputs)]] = 0
    return x


def nonzero(x: Tensor, block: int) -> Kept:
    """Lists of what is not zero."""
    return select(x, torch.ones(x.shape[1], device=x.device), torch.zeros(2, device=x.device), block=block)


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, rows, fractions, sizes that are no multiples of a block, the guard."""
    torch.manual_seed(0)
    for dtype, rows, kept in product(
        (torch.float32, torch.float16, torch.bfloat16), (1, 3, 8), (0.0, 0.5, 1.0)
    ):
        for inputs, outputs in ((4096, 4096), (1000, 333)):
            x, weight = masked(rows, inputs, kept, dtype), by_input(outputs, inputs, dtype)
            bias, chosen = torch.randn(outputs, device="cuda").to(dtype), nonzero(x, 256)
            truth = lists.reference(x.abs().float(), torch.zeros(2, device="cuda"), 256)
            case = f"{dtype}, {rows} x {inputs} x {outputs}, {kept} kept"
            yield same_lists(NAME, f"{case}, lists", chosen, truth)
            found = sparse_linear(x, chosen, weight, bias=bias)
            yield check(NAME, case, found, reference(x, chosen, weight, bias=bias))
        yield _several(x, chosen, case)
    for rows in (1, 5):
        x = masked(rows, 1024, 0.5, torch.bfloat16)
        eight = torch.randint(-127, 128, (1024, 2048), device="cuda", dtype=torch.int8).t()
        scale, chosen = torch.rand(2048, device="cuda"), nonzero(x, 256)
        found = sparse_linear(x, chosen, eight, scale)
        yield check(NAME, f"int8, {rows} rows", found, reference(x, chosen, eight, scale))
        gate = torch.tensor([0.0, 0.9], device="cuda")
        weight = by_input(2048, 1024, torch.bfloat16)
        whole = torch.randn(rows, 1024, device="cuda").to(torch.bfloat16)
        found = sparse_linear(whole, chosen, weight, gate=gate)
        yield check(NAME, f"guard, {rows} rows", found, F.linear(whole.double(), weight.double()))


def _several(x: Tensor, chosen: Kept, case: str) -> Check:
    """Three weights in one launch, each with its bias."""
    weights = [by_input(outputs, x.shape[1], x.dtype) for outputs in (512, 128, 130)]
    pairs = [(weight, torch.randn(len(weight), device="cuda").to(x.dtype)) for weight in weights]
    (weight, bias), *others = pairs
    found = sparse_linear(x, chosen, weight, bias=bias, others=others)
    truth = torch.cat([reference(x, chosen, each, bias=its) for each, its in pairs], -1)
    return check(NAME, f"three weights, {case}", found, truth)


def measurements() -> Iterator[Measurement]:
    """The best launch of the space at each shape, rows and fraction; lists are made beforehand."""
    torch.manual_seed(0)
    for name, (inputs, outputs) in SHAPES.items():
        weights = [w for (w,) in copies(by_input(outputs, inputs, torch.bfloat16), read=0.35)]
        for rows in (1, 4):
            dense_x = masked(rows, inputs, 1.0, torch.bfloat16)
            by_row = [w.contiguous() for w in weights]
            others = {
                "cuBLAS": milliseconds([partial(F.linear, dense_x, w) for w in by_row]),
                "cuBLAS, by input": milliseconds([partial(F.linear, dense_x, w) for w in weights]),
            }
            del by_row
            best = best_config(weights, rows)
            for kept in (1.0, 0.75, 0.5, 0.35):
                x = masked(rows, inputs, kept, torch.bfloat16)
                ms = _time(x, weights, best)
                size = 2.0 * (kept * inputs * outputs + rows * (inputs + outputs))
                yield Measurement(
                    NAME, f"{name}, {rows} rows, {kept} kept", ms, others, size, config=str(best)
                )
        x, ones, gate = (
            masked(1, inputs, 0.5, torch.bfloat16),
            torch.ones(inputs, device="cuda"),
            torch.zeros(2, device="cuda"),
        )
        ms = milliseconds([partial(select, x, ones, gate, block=best.block)])
        yield Measurement(NAME, f"{name}, lists alone", ms, bytes=10.0 * inputs)


def best_config(weights: list[Tensor], rows: int) -> Config:
    """The quickest where half of the channels are kept."""
    outputs, inputs = weights[0].shape
    x = masked(rows, inputs, 0.5, torch.bfloat16)
    return next(iter(quickest(configs(rows, inputs, outputs), partial(_time, x, weights))))


def _time(x: Tensor, weights: list[Tensor], config: Config) -> float:
    chosen = nonzero(x, config.block)
    return milliseconds([partial(sparse_linear, x, chosen, w, config=config) for w in weights])
