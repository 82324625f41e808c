"""The estimator against the same in torch, beside the gate and up projections that it is to make smaller."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.estimator import (
    Config,
    default_config,
    estimator,
    scores,
)
from srrc.bench.gpu.lists import same_lists
from srrc.bench.gpu.record import Check, Measurement, exact
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "estimator"

SHAPES = {"8B": (4096, 14336, 64), "SmolLM2": (576, 1536, 64)}
"""(inputs, units, rank)"""


def parts(inputs: int, units: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A random projection, decoder, norm and spread."""
    projection = (torch.randn(rank, inputs, device="cuda") / inputs**0.5).to(dtype)
    decoder = (torch.randn(units, rank, device="cuda") / rank**0.5).to(dtype)
    return projection, decoder, torch.rand(units, device="cuda") + 0.1, torch.rand(units, device="cuda")


def threshold(score: Tensor, dropped: float) -> float:
    """In the widest gap between scores near a quantile, so that rounding decides nothing."""
    ordered = score.flatten().sort().values
    middle, reach = int(dropped * len(ordered)), max(10, len(ordered) // 50)
    near = ordered[max(0, middle - reach) : middle + reach]
    widest = int(near.diff().argmax())
    return float(near[widest : widest + 2].mean())


def early() -> bool:
    """Whether this card can start a launch under another."""
    return torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def checks() -> Iterator[Check]:
    """Everything that it writes against the reference: dtypes, rows, one launch and two, odd sizes, the guard."""
    torch.manual_seed(0)
    large, small = SHAPES["8B"], SHAPES["SmolLM2"]
    cases: list[tuple[torch.dtype, int, tuple[int, int, int], Config | None]] = [
        (torch.float32, 1, small, Config(block_k=256)),
        (torch.float16, 3, (1000, 333, 48), None),
        (torch.bfloat16, 1, large, None),
        (torch.bfloat16, 8, large, None),
        (torch.bfloat16, 1, small, None),
        *([(torch.bfloat16, 1, large, Config(block_k=2048, early=True))] if early() else []),
    ]
    for dtype, rows, sizes, config in cases:
        projection, decoder, norm, spread = parts(*sizes, dtype)
        x = torch.randn(rows, sizes[0], device="cuda").to(dtype)
        score = scores(x, projection, decoder, norm, spread)
        for dropped, least in ((0.5, 0.0), (0.9, 0.2)):
            gate = torch.tensor([threshold(score, dropped), least], device="cuda")
            found = estimator(x, projection, decoder, norm, gate, spread, config=config)
            truth = lists.reference(score, gate, 128)
            case = f"{dtype}, {rows} x {sizes}, {dropped} dropped, {config or default_config(x, sizes[2])}"
            yield same_lists(NAME, case, found, truth)
        counts = torch.full_like(truth.counts, truth.units.shape[1])
        counts[-1] = sizes[1] - int(counts[:-1].sum())
        yield exact(NAME, f"guard, {case}", (lists.guarded(found, gate), counts))
    for rows, sizes in ((1, large), (5, small)):
        weights, x = _eight_bits(*sizes), torch.randn(rows, sizes[0], device="cuda").to(torch.bfloat16)
        projection, decoder, norm, spread, *scales = weights
        score = scores(x, *weights)
        gate = torch.tensor([threshold(score, 0.5), 0.0], device="cuda")
        found = estimator(x, projection, decoder, norm, gate, spread, *scales)
        yield same_lists(NAME, f"int8, {rows} x {sizes}", found, lists.reference(score, gate, 128))


def _eight_bits(inputs: int, units: int, rank: int) -> tuple[Tensor, ...]:
    """The same of eight bits, with scales at the end."""
    sizes = (rank, inputs), (units, rank)
    weights = (torch.randint(-127, 128, size, device="cuda", dtype=torch.int8) for size in sizes)
    scales = (torch.rand(size[0], device="cuda") / 60 / size[1] ** 0.5 for size in sizes)
    return *weights, torch.rand(units, device="cuda") + 0.1, torch.rand(units, device="cuda"), *scales


def measurements() -> Iterator[Measurement]:
    """Half of the units kept; each way to launch it, the fastest first."""
    torch.manual_seed(0)
    for name, sizes in SHAPES.items():
        inputs, units, rank = sizes
        for rows in (1, 4):
            x = torch.randn(rows, inputs, device="cuda").to(torch.bfloat16)
            sets = copies(*parts(*sizes, torch.bfloat16))
            gate = torch.tensor([float(scores(x, *sets[0]).median()), 0.0], device="cuda")
            ways = _ways(x, rank)
            found = quickest(ways, lambda way: _time(x, sets, gate, ways[way]))  # noqa: B023 (called at once)
            best = next(iter(found))
            others = {"gate, up (cuBLAS)": _dense(x, units), "torch": _plain(x, sets, gate, plain)}
            if rows == 1 and name == "8B":
                others["Inductor"] = _plain(x, sets, gate, torch.compile(plain, dynamic=False))
            others |= {way: ms for way, ms in found.items() if way != best}
            size = 2.0 * rank * (inputs + units) + 2 * rows * inputs + (4 + 4 + 1 + 4) * units
            flops = 2.0 * rows * rank * (inputs + units)
            yield Measurement(NAME, f"{name}, {rows} rows", found[best], others, size, flops, config=best)


def _ways(x: Tensor, rank: int) -> dict[str, Config]:
    default = default_config(x, rank)
    ways = {"fused" if default.fused else "two launches": default}
    if default.fused:
        ways |= {"fused, 256 inputs": Config(block_k=256, fused=True, num_warps=8)}
        ways |= {"two launches": Config(block_k=1024)}
    elif early() and len(x) == 1:
        ways |= {"two launches, early": Config(block_k=default.block_k, early=True)}
    return ways


def _time(x: Tensor, sets: list[tuple[Tensor, ...]], gate: Tensor, config: Config) -> float:
    calls = [partial(estimator, x, p, d, norm, gate, spread, config=config) for p, d, norm, spread in sets]
    return milliseconds(calls)


def _dense(x: Tensor, units: int) -> float:
    weights = copies(torch.randn(2 * units, x.shape[1], device="cuda").to(x.dtype))
    return milliseconds([partial(F.linear, x, w) for (w,) in weights])


def _plain(x: Tensor, sets: list[tuple[Tensor, ...]], gate: Tensor, function: Callable[..., object]) -> float:
    return milliseconds([partial(function, x, p, d, norm, gate, spread) for p, d, norm, spread in sets])


def plain(
    x: Tensor, projection: Tensor, decoder: Tensor, norm: Tensor, gate: Tensor, spread: Tensor
) -> tuple[Tensor, ...]:
    """The same in torch, of which nothing waits for the device."""
    estimate = F.linear(F.linear(x, projection), decoder).float()
    doubt = spread * x.float().square().mean(1, keepdim=True).sqrt()
    kept = ~((estimate.square() + doubt.square()).sqrt() * norm <= gate[0])
    rows = kept.view(len(x), -1, 128)
    shared = rows.any(0)
    before = shared.cumsum(1) - shared.long()
    column = torch.arange(128, device=x.device)
    place = torch.where(shared, before, shared.sum(1, keepdim=True) + column - before)
    unit = torch.arange(kept.shape[1], dtype=torch.int32, device=x.device).view(-1, 128)
    units = torch.empty_like(unit).scatter_(1, place, unit)
    return kept.any(0), units, shared.sum(1, dtype=torch.int32), rows.sum(2, dtype=torch.int32)
