"""How long the gated ops take, tuned for this card, beside the best of what computes the same densely."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton import worth
from srrc.backends.triton.ops.channel_linear import channel_linear
from srrc.backends.triton.ops.neuron_mlp import neuron_mlp
from srrc.bench.gpu.record import Measurement
from srrc.bench.gpu.sparse_linear import by_input, masked
from srrc.bench.gpu.timing import MODE, copies, milliseconds
from srrc.ops.coarse_copy import coarse_copy
from srrc.passes.gating.vocab import EXACT_SHARE

NAME = "gated_ops"

SHAPES = {"8B": (4096, 14336, (4096, 1024, 1024)), "SmolLM2": (576, 1536, (576, 192, 192))}
"""(width, neurons, outputs of q, k and v)"""

VOCABULARY = 128256


def measurements() -> Iterator[Measurement]:
    """One row, half of the channels and half of the neurons dropped."""
    torch.manual_seed(0)
    for name, (width, neurons, heads) in SHAPES.items():
        yield _linears(name, width, heads)
        for whole_up in (True, False):
            yield _mlp(name, width, neurons, whole_up=whole_up)
    yield _head()


def _tune(parts: Sequence[worth.Part]) -> None:
    """As compiling a graph does. Without a cache on the disk, what is found stays in this process."""
    timer: worth.Timer | None = _run if MODE.warming else None
    worth.measure(parts, torch.device("cuda", torch.cuda.current_device()), timer)


def _run(call: Callable[[], object]) -> float:
    call()
    return 1.0


def _dense(function: Callable[..., object], x: Tensor, sets: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """By cuBLAS with weights as a model holds them, and laid out by input, and by Inductor."""

    def ms(call: Callable[..., object], laid_out: Sequence[Sequence[Tensor]]) -> float:
        return milliseconds([partial(call, x, *weights) for weights in laid_out])

    by_row = [[weight.contiguous() for weight in weights] for weights in sets]
    compiled = torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")
    return {"by row": ms(function, by_row), "by input": ms(function, sets), "Inductor": ms(compiled, by_row)}


def _linears(name: str, width: int, heads: tuple[int, ...]) -> Measurement:
    x = masked(1, width, 0.5, torch.bfloat16)
    sets = [
        (whole, torch.split(whole, list(heads)))
        for (whole,) in copies(by_input(sum(heads), width, x.dtype), read=0.5)
    ]
    ones, gate = torch.ones(width, device="cuda"), torch.zeros(2, device="cuda")
    told = torch.zeros(3, dtype=torch.int64, device="cuda")
    _tune(worth.channel_linear(x, sets[0][1], [None] * 3))
    ms = milliseconds([partial(channel_linear, x, each, [None] * 3, ones, gate, told) for _, each in sets])
    dense = _dense(F.linear, x, [(whole,) for whole, _ in sets])
    return Measurement(NAME, f"{name} q, k, v", ms, dense, float(width * sum(heads)))


def _mlp(name: str, width: int, neurons: int, *, whole_up: bool) -> Measurement:
    """Of relu: half of its neurons are zeros. With `up` by rows, of those that are not zeros alone."""
    x = masked(1, width, 0.5, torch.bfloat16)
    both, down = by_input(2 * neurons, width, x.dtype), by_input(width, neurons, x.dtype)
    sets = copies(both, down, read=0.5)
    ours = [(*both.chunk(2), down) for both, down in sets]
    if whole_up:
        ours = [(gate, up.contiguous(), down) for gate, up, down in ours]
    norms = [torch.ones(size, device="cuda") for size in (width, neurons, neurons)]
    gates, told = torch.zeros(3, 2, device="cuda"), torch.zeros(3, 3, dtype=torch.int64, device="cuda")
    gates[1, 0] = 0.0 if whole_up else -1.0
    rest = ("relu", *norms, gates, told, None, whole_up)
    gate, up, down = ours[0]
    _tune(worth.neuron_mlp(x, gate, None, up, None, down, None, *rest))
    ms = milliseconds([partial(_routed_mlp, x, weights, rest) for weights in ours])
    dense = _dense(_dense_mlp, x, sets)
    case = f"{name} MLP, half of the channels and neurons{', up by rows' if whole_up else ''}"
    return Measurement(NAME, case, ms, dense, 3.0 * width * neurons)


def _routed_mlp(x: Tensor, weights: Sequence[Tensor], rest: tuple[Any, ...]) -> Tensor:
    gate, up, down = weights
    return neuron_mlp(x, gate, None, up, None, down, None, *rest)


def _dense_mlp(x: Tensor, both: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, both).chunk(2, -1)
    return F.linear(F.relu(gate) * up, down)


def _head() -> Measurement:
    """8B's, half of the channels of its coarse copy; compiled, as it always is, for a rotation that is one launch."""
    width, _, _ = SHAPES["8B"]
    x = masked(1, width, 0.5, torch.bfloat16)
    weight = torch.randn(VOCABULARY, width, device="cuda", dtype=x.dtype).mul_(width**-0.5)
    eye, mean = torch.eye(width, device="cuda"), torch.zeros(width, device="cuda")
    copy, exact = coarse_copy(weight, None, eye, mean), VOCABULARY // EXACT_SHARE
    gate, told = torch.zeros(2, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    given = (weight, None, eye, mean, copy.coarse, copy.scale, copy.bias, copy.norm, gate, told, exact)
    _tune(worth.head(x, *given))
    with torch.no_grad():
        run = torch.compile(lambda x: torch.ops.srr_triton.vocab_head(x, *given), dynamic=False)
        ms = milliseconds([partial(run, x)])
    dense = {"by row": milliseconds([partial(F.linear, x, weight)])}
    read = 0.5 * VOCABULARY * width + 2.0 * exact * width
    case = f"8B head, half of the channels, {exact} of {VOCABULARY} tokens exact"
    return Measurement(NAME, case, ms, dense, read)
