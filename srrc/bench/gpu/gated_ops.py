"""The gated ops as graphs call them: an MLP, attention's linears, the head, every launch, beside dense products."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.ops.channel_linear import channel_linear
from srrc.backends.triton.ops.neuron_mlp import neuron_mlp
from srrc.backends.triton.ops.vocab_head import vocab_head
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.sparse_linear import by_input, masked
from srrc.bench.gpu.timing import copies, milliseconds
from srrc.ops import channel_linear as linear_truth
from srrc.ops import neuron_mlp as mlp_truth
from srrc.ops import vocab_head as head_truth
from srrc.ops.coarse_copy import coarse_copy

NAME = "gated_ops"

SHAPES = {"8B": (4096, 14336, (4096, 1024, 1024)), "SmolLM2": (576, 1536, (576, 192, 192))}
"""(width, neurons, outputs of q, k and v)"""


def _gates(count: int, threshold: float = 0.0) -> Tensor:
    return torch.tensor([[threshold, 0.0]] * count, device="cuda")


def _counters(count: int, each: int = 3) -> Tensor:
    return torch.zeros(count, each, dtype=torch.int64, device="cuda")


def _mlp(width: int, neurons: int, dtype: torch.dtype, *, whole_up: bool) -> list[Tensor | None]:
    """Weights and (no) biases, in the op's order."""
    up = torch.randn(neurons, width, device="cuda").to(dtype) / width**0.5
    gate = by_input(neurons, width, dtype)
    return [
        gate,
        None,
        up if whole_up else by_input(neurons, width, dtype),
        None,
        by_input(width, neurons, dtype),
        None,
    ]


def _norms(width: int, neurons: int) -> list[Tensor]:
    return [torch.ones(size, device="cuda") for size in (width, neurons, neurons)]


def _wide(values: Sequence[Any]) -> list[Any]:
    """What is of a model's dtype in float64, for the truth."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def checks() -> Iterator[Check]:
    """Against the ops' references. What is dropped is zero, so that rounding decides nothing."""
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, rows in product(dtypes, (1, 3, 8)):
        x, case = masked(rows, 512, 0.5, dtype), f"{dtype}, {rows} rows"
        weights, ones = [by_input(n, 512, dtype) for n in (512, 128, 130)], torch.ones(512, device="cuda")
        gate, told, truth_told = _gates(1)[0], _counters(1)[0], _counters(1)[0]
        found = channel_linear(x, weights, [None] * 3, ones, gate, told)
        truth = linear_truth.reference(x.double(), _wide(weights), [None] * 3, ones, gate, truth_told)
        yield check(NAME, f"linears, {case}", found, truth)
        yield check(NAME, f"linears, counters, {case}", told.float(), truth_told.float())
        for whole_up in (True, False):
            mlp: list[Any] = [*_mlp(512, 1024, dtype, whole_up=whole_up)]
            told, truth_told = _counters(3), _counters(3)
            gates = _gates(3)
            if not whole_up:
                gates[1, 0] = -1.0
            rest: list[Any] = ["relu", *_norms(512, 1024), gates]
            found = neuron_mlp(x, *[*mlp, *rest, told, None, whole_up])
            truth = mlp_truth.reference(x.double(), *[*_wide(mlp), *rest, truth_told, None, whole_up])
            yield check(NAME, f"MLP{', whole up' if whole_up else ''}, {case}", found, truth)
            asked = [0, 1, 2] if whole_up else [0, 2]
            yield check(NAME, f"MLP, counters, {case}", told[asked].float(), truth_told[asked].float())
        yield from _head(x, case)
    yield from _compiled()


def _head(x: Tensor, case: str) -> Iterator[Check]:
    """All exact where a guard fails; otherwise the best are, which the reference says."""
    weight = torch.randn(5000, 512, device="cuda").to(x.dtype) / 512**0.5
    eye, mean = torch.eye(512, device="cuda"), torch.zeros(512, device="cuda")
    copy = coarse_copy(weight, None, eye, mean)
    for least in (0.0, 1.1):
        gate, told, truth_told = _gates(1)[0], _counters(1, 4)[0], _counters(1, 4)[0]
        gate[1] = least
        shared = (copy.coarse, copy.scale, copy.bias, copy.norm, gate)
        found = vocab_head(x, weight, None, eye, mean, *shared, told, 100)
        truth = head_truth.reference(x.double(), weight.double(), None, eye, mean, *shared, truth_told, 100)
        # Coarse logits are rounded by a tensor core; where they are nearly equal, another token may be exact.
        yield Check(NAME, f"head, guard {least}, {case}", _error(found, truth), 1e-2)
        yield check(NAME, f"head, guard {least}, counters, {case}", told.float(), truth_told.float())


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def _compiled() -> Iterator[Check]:
    """Through Inductor, counters and all."""
    x, weight = masked(1, 512, 0.5, torch.bfloat16), by_input(512, 512, torch.bfloat16)
    ones, gate, told = torch.ones(512, device="cuda"), _gates(1)[0], _counters(1)[0]

    def run(x: Tensor, told: Tensor) -> Tensor:
        found: Tensor = torch.ops.srr_triton.channel_linear(
            x * 2, [weight, weight], [None, None], ones, gate, told
        )
        return found + 1

    with torch.no_grad():
        truth = run(x, told)
        found = torch.compile(run)(x, told)
    yield check(NAME, "compiled", found, truth)
    yield check(NAME, "compiled, counters", told.float(), torch.tensor([1024.0, 512.0, 0.0], device="cuda"))


def measurements() -> Iterator[Measurement]:
    """One row, half of the channels and half of the neurons dropped, beside cuBLAS."""
    torch.manual_seed(0)
    for name, (width, neurons, heads) in SHAPES.items():
        x = masked(1, width, 0.5, torch.bfloat16)
        weights = copies(*(by_input(n, width, torch.bfloat16) for n in heads))
        ones, gate, told = torch.ones(width, device="cuda"), _gates(1)[0], _counters(1)[0]
        ms = milliseconds([partial(channel_linear, x, w, [None] * 3, ones, gate, told) for w in weights])
        dense = milliseconds([partial(_each, x, w) for w in weights])
        yield Measurement(NAME, f"{name} q, k, v", ms, {"cuBLAS": dense}, width * sum(heads))
        for whole_up in (True, False):
            mlp = _mlp(width, neurons, torch.bfloat16, whole_up=whole_up)
            sets = copies(*(w for w in mlp if w is not None))
            gates, told = _gates(3), _counters(3)
            gates[1, 0] = 0.0 if whole_up else -1.0
            rest = ("relu", *_norms(width, neurons), gates, told, None, whole_up)
            ms = milliseconds([partial(_routed_mlp, x, w, rest) for w in sets])
            dense = milliseconds([partial(_dense_mlp, x, *w) for w in sets])
            case = f"{name} MLP, half of the channels and neurons{', up by rows' if whole_up else ''}"
            yield Measurement(NAME, case, ms, {"dense": dense}, 3.0 * width * neurons)


def _each(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    return [F.linear(x, weight) for weight in weights]


def _routed_mlp(x: Tensor, weights: Sequence[Tensor], rest: tuple[Any, ...]) -> Tensor:
    gate, up, down = weights
    return neuron_mlp(x, gate, None, up, None, down, None, *rest)


def _dense_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, gate)) * F.linear(x, up), down)
