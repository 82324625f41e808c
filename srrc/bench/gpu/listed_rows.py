"""Rows of `up` for the neurons that a gate left, against cuBLAS's dense product, at shapes of 8B and SmolLM2."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.gated_mlp import Config, configs
from srrc.backends.triton.kernels.listed_rows import listed_rows, reference
from srrc.backends.triton.kernels.lists import Kept
from srrc.bench.gpu.record import Check, Measurement, check, exact
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "listed_rows"

SHAPES = {"8B": (4096, 14336), "SmolLM2": (576, 1536)}
"""(inputs, neurons)"""


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, rows, guards, biases, emphasis, weights of eight bits, odd sizes."""
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, rows, (inputs, neurons) in product(dtypes, (1, 3, 8), ((1024, 2048), (300, 777))):
        x = torch.randn(rows, inputs, device="cuda").to(dtype)
        weight = (torch.randn(neurons, inputs, device="cuda") / inputs**0.5).to(dtype)
        bias = torch.randn(neurons, device="cuda").to(dtype)
        emphasis = torch.rand(rows, device="cuda") + 0.5
        case = f"{dtype}, {rows} x {inputs} x {neurons}"
        yield from _one(case, x, weight)
        yield from _one(f"{case}, bias, emphasis", x, weight, bias=bias, emphasis=emphasis)
        yield from _one(f"{case}, guard", x, weight, least=1.0)
        eight = torch.randint(-127, 128, (neurons, inputs), device="cuda", dtype=torch.int8)
        yield from _one(
            f"{case}, int8", x, eight, scale=torch.rand(neurons, device="cuda") / 60 / inputs**0.5
        )


def _one(
    case: str,
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    emphasis: Tensor | None = None,
    scale: Tensor | None = None,
    least: float = 0.0,
) -> Iterator[Check]:
    """Values, what is left of the neurons by the values that the kernel itself wrote, and counters."""
    rows, neurons = len(x), len(weight)
    acted, norm = (
        torch.randn(rows, neurons, device="cuda").to(x.dtype),
        torch.rand(neurons, device="cuda") + 0.5,
    )
    gates = torch.tensor([[0.9, least], [0.3, 0.0]], device="cuda")
    kept = lists.reference(acted.abs().float() * norm, gates[0], 256)
    told = torch.zeros(2, 3, dtype=torch.int64, device="cuda")
    hidden, left = listed_rows(
        x, acted, kept, weight, norm, gates, bias, emphasis, told, counter=3, scale=scale
    )
    truth, alive = reference(x, acted, kept, weight, gates, bias, scale)
    yield check(NAME, case, hidden, truth)
    score = hidden.abs().float() * norm
    score = score if emphasis is None else score * emphasis[:, None]
    after = lists.reference(torch.where(alive, score, 0.0), gates[1], 256)
    pairs = ((left.counts, after.counts), (left.rows, after.rows), (left.mask(), after.mask()))
    failed = int((kept.rows.sum(1) < least * neurons).sum())
    counted = [[0, 0, 0], [rows * neurons, rows * int(alive.sum()), failed]]
    yield exact(NAME, f"{case}, lists", *pairs, (told, torch.tensor(counted, device="cuda")))


def measurements() -> Iterator[Measurement]:
    """A half and a quarter of the neurons listed, at the configuration that is best at a half."""
    torch.manual_seed(0)
    for name, (inputs, neurons) in SHAPES.items():
        sets = copies(
            (torch.randn(neurons, inputs, device="cuda") / inputs**0.5).to(torch.bfloat16), read=0.25
        )
        weights = [weight for (weight,) in sets]
        for rows in (1, 4):
            x = torch.randn(rows, inputs, device="cuda").to(torch.bfloat16)
            others = {"cuBLAS": milliseconds([partial(F.linear, x, weight) for weight in weights])}
            best: Config | None = None
            for part in (0.5, 0.25):
                chosen = torch.rand(1, neurons, device="cuda") < part
                kept = lists.reference(chosen.float(), torch.tensor([0.5, 0.0], device="cuda"), 256)
                best = best or next(iter(quickest(configs(rows), partial(_time, x, weights, kept))))
                ms = _time(x, weights, kept, best)
                size = 2.0 * part * neurons * inputs + 2.0 * rows * (inputs + 2 * neurons)
                case = f"{name}, {rows} rows, {part} of the neurons listed"
                yield Measurement(NAME, case, ms, others, size, config=str(best))


def _time(x: Tensor, weights: list[Tensor], kept: Kept, config: Config) -> float:
    rows, neurons = len(x), kept.count
    kept = Kept(kept.units, kept.counts, kept.rows.expand(rows, -1).contiguous(), kept.arrived, neurons)
    acted, norm = torch.randn(rows, neurons, device="cuda").to(x.dtype), torch.ones(neurons, device="cuda")
    gates = torch.zeros(2, 2, device="cuda")
    return milliseconds(
        [partial(listed_rows, x, acted, kept, weight, norm, gates, config=config) for weight in weights]
    )
