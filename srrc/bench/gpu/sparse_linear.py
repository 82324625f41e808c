"""The channel-sparse linear against cuBLAS's dense one, at shapes of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.sparse_linear import Config, configs, reference, sparse_linear, workspace
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import copies, milliseconds

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
    return (torch.randn(inputs, outputs, device="cuda") / inputs**0.5).to(dtype).t()


def masked(rows: int, inputs: int, kept: float, dtype: torch.dtype) -> Tensor:
    """Random rows of which exactly a fraction is kept, the same channels for all."""
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    x[:, torch.randperm(inputs, device="cuda")[: inputs - round(kept * inputs)]] = 0
    return x


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, rows, fractions, sizes that are no multiples of a block."""
    torch.manual_seed(0)
    for dtype, rows, kept in product(
        (torch.float32, torch.float16, torch.bfloat16), (1, 3, 8), (0.0, 0.5, 1.0)
    ):
        for inputs, outputs in ((4096, 4096), (1000, 333)):
            x, weight = masked(rows, inputs, kept, dtype), by_input(outputs, inputs, dtype)
            bias = torch.randn(outputs, device="cuda").to(dtype)
            case = f"{dtype}, {rows} x {inputs} x {outputs}, {kept} kept"
            yield check(NAME, case, sparse_linear(x, weight, bias=bias), reference(x, weight, bias=bias))
    for rows in (1, 5):
        x = masked(rows, 1024, 0.5, torch.bfloat16)
        eight = torch.randint(-127, 128, (1024, 2048), device="cuda", dtype=torch.int8).t()
        scale = torch.rand(2048, device="cuda")
        yield check(NAME, f"int8, {rows} rows", sparse_linear(x, eight, scale), reference(x, eight, scale))


def measurements() -> Iterator[Measurement]:
    """The best configuration of the space at each shape, rows and fraction."""
    torch.manual_seed(0)
    for name, (inputs, outputs) in SHAPES.items():
        for rows in (1, 4):
            weights = [w for (w,) in copies(by_input(outputs, inputs, torch.bfloat16))]
            dense_x = masked(rows, inputs, 1.0, torch.bfloat16)
            by_row = [w.contiguous() for w in weights]
            others = {
                "cuBLAS": milliseconds([lambda w=w, x=dense_x: F.linear(x, w) for w in by_row]),
                "cuBLAS, by input": milliseconds([lambda w=w, x=dense_x: F.linear(x, w) for w in weights]),
            }
            del by_row
            best = _best(masked(rows, inputs, 0.5, torch.bfloat16), weights)
            for kept in (1.0, 0.75, 0.5, 0.35):
                x = masked(rows, inputs, kept, torch.bfloat16)
                ms = _time(x, weights, best)
                size = 2.0 * (kept * inputs * outputs + rows * (inputs + outputs))
                yield Measurement(
                    NAME, f"{name}, {rows} rows, {kept} kept", ms, others, size, config=str(best)
                )


def _best(x: Tensor, weights: list[Tensor]) -> Config:
    found = {config: _time(x, weights, config) for config in configs(len(x))}
    return min(found, key=lambda config: found[config])


def _time(x: Tensor, weights: list[Tensor], config: Config) -> float:
    space = workspace(x, weights[0].shape[0], config)
    return milliseconds([lambda w=w: sparse_linear(x, w, config=config, space=space) for w in weights])
