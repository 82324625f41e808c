"""Experts in one launch against a product for each, and torch's grouped product, at shapes of Mixtral and OLMoE."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.grouped_linear import (
    Config,
    Routing,
    configs,
    grouped_linear,
    reference,
    route,
)
from srrc.bench.gpu.baselines import Baselines
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import milliseconds, quickest

NAME = "grouped_linear"

SHAPES = {"Mixtral": (8, 2, 4096, 14336, (1, 8, 512)), "OLMoE": (64, 8, 2048, 1024, (512,))}
"""(experts, of which a token chooses, inputs, outputs, tokens)"""


def chosen(tokens: int, top_k: int, experts: int) -> Routing:
    """Random experts, different ones for a token."""
    return route(torch.rand(tokens, experts, device="cuda").topk(top_k).indices, experts)


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, layouts, pairs that are dropped, sizes that are no multiples of a block."""
    torch.manual_seed(0)
    for dtype, tokens, experts, inputs, outputs, by_input in (
        (torch.bfloat16, 1, 8, 1024, 512, False),
        (torch.bfloat16, 100, 8, 1000, 333, False),
        (torch.bfloat16, 300, 8, 1024, 512, True),
        (torch.float16, 512, 8, 1024, 512, False),
        (torch.float32, 3, 8, 512, 333, False),
        (torch.float32, 100, 8, 512, 333, False),
    ):
        x = torch.randn(tokens, inputs, device="cuda").to(dtype)
        shape = (experts, inputs, outputs) if by_input else (experts, outputs, inputs)
        weight = (torch.randn(shape, device="cuda") / inputs**0.5).to(dtype)
        weight = weight.transpose(1, 2) if by_input else weight
        choice = torch.rand(tokens, experts, device="cuda").topk(2).indices
        routings = {
            "random": choice,
            "one expert": torch.full_like(choice, 5),
            "few experts, some dropped": torch.where(choice < 3, choice, experts),
        }
        for name, expert in routings.items():
            way = route(expert, experts)
            of_router = torch.rand(2 * tokens, device="cuda")
            found = grouped_linear(x, weight, way.order, way.offsets, of_router)
            case = f"{dtype}, {tokens} x {inputs} x {outputs}{', by input' if by_input else ''}, {name}"
            yield check(NAME, case, found, reference(x, weight, way.order, way.offsets, of_router))
    for tokens in (1, 100):
        x, way = torch.randn(tokens, 1024, device="cuda").to(torch.bfloat16), chosen(tokens, 2, 8)
        weight = torch.randint(-127, 128, (8, 512, 1024), device="cuda", dtype=torch.int8)
        given = (x, weight, way.order, way.offsets, None, torch.rand(8, 512, device="cuda"))
        yield check(NAME, f"int8, {tokens} tokens", grouped_linear(*given), reference(*given))


def measurements() -> Iterator[Measurement]:
    """The best configuration of the space at each shape; the others gather rows too, and know the offsets."""
    torch.manual_seed(0)
    for name, (experts, top_k, inputs, outputs, sizes) in SHAPES.items():
        weight = torch.randn(experts, outputs, inputs, device="cuda", dtype=torch.bfloat16)
        for tokens in sizes:
            x = torch.randn(tokens, inputs, device="cuda").to(torch.bfloat16)
            way = chosen(tokens, top_k, experts)
            others = Baselines({"F.linear for each": _for_each(x, weight, way)})
            others.time("torch.grouped_mm", partial(_torch_grouped, x, weight, way))
            pairs = tokens * top_k
            found = quickest(configs(pairs, experts), partial(_time, x, weight, way))
            best = next(iter(found))
            used = int((way.offsets.diff() > 0).sum())
            size = 2.0 * (used * inputs * outputs + tokens * inputs + pairs * outputs)
            flops = 2.0 * pairs * inputs * outputs
            yield Measurement(
                NAME,
                f"{name}, {tokens} tokens",
                found[best],
                others.ms,
                size,
                flops,
                str(best),
                others.missing,
            )


def _time(x: Tensor, weight: Tensor, way: Routing, config: Config) -> float:
    return milliseconds([lambda: grouped_linear(x, weight, way.order, way.offsets, config=config)])


def _for_each(x: Tensor, weight: Tensor, way: Routing) -> float:
    ranges = [
        (e, first, past) for e, (first, past) in enumerate(pairwise(way.offsets.tolist())) if past > first
    ]

    def call() -> list[Tensor]:
        rows = x.index_select(0, way.order)
        return [F.linear(rows[first:past], weight[e]) for e, first, past in ranges]

    return milliseconds([call])


def _torch_grouped(x: Tensor, weight: Tensor, way: Routing) -> float:
    """Raises where this torch has no grouped product, or one that waits for the device."""
    function = getattr(F, "grouped_mm", None) or torch._grouped_mm  # noqa: SLF001
    ends = way.offsets[1:].clone()

    def call() -> object:
        return function(x.index_select(0, way.order), weight.transpose(1, 2), offs=ends)

    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return milliseconds([call])
