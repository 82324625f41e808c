"""The gated ops as graphs call them: an MLP, attention's linears, the head, every launch, beside dense products."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from srrc.backends.triton.ops.channel_linear import channel_linear, factors
from srrc.backends.triton.ops.neuron_mlp import neuron_mlp
from srrc.backends.triton.ops.vocab_head import vocab_head
from srrc.bench.gpu import gated_times
from srrc.bench.gpu.estimator import threshold
from srrc.bench.gpu.record import ALLOWED, Check, check, exact, off_by
from srrc.bench.gpu.sparse_linear import by_input, masked
from srrc.ops import channel_linear as linear_truth
from srrc.ops import neuron_mlp as mlp_truth
from srrc.ops import vocab_head as head_truth
from srrc.ops.coarse_copy import coarse_copy

NAME = "gated_ops"

measurements = gated_times.measurements

WIDTH, NEURONS = 512, 1024


def gates(count: int) -> Tensor:
    """Records that drop zeros alone."""
    return torch.zeros(count, 2, device="cuda")


def counters(count: int, each: int = 3) -> Tensor:
    """Zeros."""
    return torch.zeros(count, each, dtype=torch.int64, device="cuda")


def _wide(values: Sequence[Any]) -> list[Any]:
    """What is of a model's dtype in float64, for the truth."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def _biases(sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.randn(size, device="cuda").to(dtype) for size in sizes]


def checks() -> Iterator[Check]:
    """Against the ops' references. What is dropped is zero, or far from the threshold: rounding decides nothing."""
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, rows in product(dtypes, (1, 3, 8)):
        x, case = masked(rows, WIDTH, 0.5, dtype), f"{dtype}, {rows} rows"
        yield from _linears(x, case)
        yield from _linears(torch.randn_like(x), f"{case}, emphasis", emphasised=True)
        for whole_up, biases in ((True, False), (False, False), (True, True), (False, True)):
            yield from _mlp(x, case, whole_up=whole_up, biases=biases)
        yield from _head(x, case)
    yield from _compiled()


def _linears(x: Tensor, case: str, *, emphasised: bool = False) -> Iterator[Check]:
    """Three of them, with biases and without."""
    sizes, ones = (512, 128, 130), torch.ones(WIDTH, device="cuda")
    weights = [by_input(n, WIDTH, x.dtype) for n in sizes]
    probe, gate = (_probe(), gates(1)[0]) if emphasised else (None, gates(1)[0])
    if probe is not None:
        gate[0] = threshold(x.abs().float() * factors(x, probe)[:, None], 0.6)
    for biases in ([None] * 3, _biases(sizes, x.dtype)):
        told, truth_told = counters(1)[0], counters(1)[0]
        found = channel_linear(x, weights, biases, ones, gate, told, probe)
        wide, truly = _wide(weights), _wide(biases)
        truth = linear_truth.reference(x.double(), wide, truly, ones, gate, truth_told, probe)
        which = f"linears{'' if biases[0] is None else ', biases'}, {case}"
        yield check(NAME, which, found, truth)
        yield exact(NAME, f"{which}, counters", (told, truth_told))


def _probe() -> Tensor:
    return torch.randn(WIDTH + 1, device="cuda").mul_(0.5 * WIDTH**-0.5)


def _mlp(x: Tensor, case: str, *, whole_up: bool, biases: bool) -> Iterator[Check]:
    """Of relu, which leaves zeros; the channels' gate with emphasis where there are biases."""
    up: Tensor = torch.randn(NEURONS, WIDTH, device="cuda").to(x.dtype) / WIDTH**0.5
    weights = [
        by_input(NEURONS, WIDTH, x.dtype),
        up if whole_up else by_input(NEURONS, WIDTH, x.dtype),
        by_input(WIDTH, NEURONS, x.dtype),
    ]
    added = _biases((NEURONS, NEURONS, WIDTH), x.dtype) if biases else [None] * 3
    given: list[Any] = [each for pair in zip(weights, added, strict=True) for each in pair]
    norms, records = [torch.ones(n, device="cuda") for n in (WIDTH, NEURONS, NEURONS)], gates(3)
    probes = None
    if biases:
        probes = torch.stack([_probe() for _ in range(3)])
        x = torch.randn_like(x)
        records[0, 0] = threshold(x.abs().float() * factors(x, probes[0])[:, None], 0.6)
    if not whole_up:
        records[1, 0] = -1.0
    told, truth_told = counters(3), counters(3)
    rest: list[Any] = ["relu", *norms, records]
    found = neuron_mlp(x, *[*given, *rest, told, probes, whole_up])
    truth = mlp_truth.reference(x.double(), *[*_wide(given), *rest, truth_told, probes, whole_up])
    case = f"MLP{', whole up' if whole_up else ''}{', biases, emphasis' if biases else ''}, {case}"
    yield check(NAME, case, found, truth, slack=2)
    asked = [0, 1, 2] if whole_up else [0, 2]
    yield exact(NAME, f"{case}, counters", (told[asked], truth_told[asked]))


def _head(x: Tensor, case: str) -> Iterator[Check]:
    """All exact where a guard fails; otherwise the best are, which the reference says.

    The coarse copy is of half the size of what it stands for, so that a logit of the wrong kind shows.
    """
    weight = torch.randn(5000, WIDTH, device="cuda").to(x.dtype) / WIDTH**0.5
    eye, mean = torch.eye(WIDTH, device="cuda"), torch.zeros(WIDTH, device="cuda")
    copy = coarse_copy(weight, None, eye, mean)
    for least in (0.0, 1.1):
        gate, told, truth_told = gates(1)[0], counters(1, 4)[0], counters(1, 4)[0]
        gate[1] = least
        shared = (copy.coarse, copy.scale / 2, copy.bias, copy.norm, gate)
        found = vocab_head(x, weight, None, eye, mean, *shared, told, 100)
        truth = head_truth.reference(x.double(), weight.double(), None, eye, mean, *shared, truth_told, 100)
        which = f"head, guard {least}, {case}"
        if least > 1:
            yield check(NAME, which, found, truth)
        else:
            # Coarse logits are rounded by a tensor core; where they are nearly equal, another token may be exact.
            wrong = int((off_by(found, truth) > ALLOWED["bfloat16"]).sum())
            yield Check(NAME, f"{which}, tokens", float(wrong), 4.0 * len(x))
        yield exact(NAME, f"{which}, counters", (told, truth_told))


def _compiled() -> Iterator[Check]:
    """Through Inductor, counters and all."""
    x, weight = masked(1, 512, 0.5, torch.bfloat16), by_input(512, 512, torch.bfloat16)
    ones, gate, told = torch.ones(512, device="cuda"), gates(1)[0], counters(1)[0]

    def run(x: Tensor, told: Tensor) -> Tensor:
        found: Tensor = torch.ops.srr_triton.channel_linear(
            x * 2, [weight, weight], [None, None], ones, gate, told
        )
        return found + 1

    with torch.no_grad():
        truth = run(x, told)
        found = torch.compile(run)(x, told)
    yield check(NAME, "compiled", found, truth)
    yield exact(NAME, "compiled, counters", (told, torch.tensor([1024, 512, 0], device="cuda")))
