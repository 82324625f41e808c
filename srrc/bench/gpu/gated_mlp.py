"""The neuron-gated MLP against a dense one by cuBLAS, at shapes of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.gated_mlp import Config, configs, gated_hidden, gated_mlp, reference
from srrc.backends.triton.kernels.lists import Kept
from srrc.bench.gpu.estimator import threshold
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "gated_mlp"

SHAPES = {"8B": (4096, 14336), "SmolLM2": (576, 1536)}
"""(inputs, neurons)"""


def checks() -> Iterator[Check]:
    """Against the reference, neurons chosen beforehand and by their exact gates."""
    torch.manual_seed(0)
    for dtype, rows in product((torch.float32, torch.float16, torch.bfloat16), (1, 3, 8)):
        for inputs, neurons in ((1024, 2048), (300, 777)):
            x, gate, up = _inputs(rows, inputs, neurons, dtype)
            chosen = torch.rand(neurons, device="cuda") < 0.7
            # Far from any score: rounding must not decide.
            shared = (
                x,
                gate,
                up,
                torch.ones(2, neurons, device="cuda"),
                torch.tensor([-1.0, -1.0], device="cuda"),
            )
            case = f"{dtype}, {rows} x {inputs} x {neurons}"
            found = _kept(*gated_hidden(*shared, _lists(chosen)))
            yield check(NAME, f"{case}, chosen", found, reference(*shared, chosen))
            down = (torch.randn(neurons, 500, device="cuda") / neurons**0.5).to(dtype).t()
            whole = gated_mlp(*shared[:3], down, *shared[3:], _lists(chosen))
            truth = F.linear(reference(*shared, chosen).double(), down.double())
            yield check(NAME, f"{case}, with down", whole, truth, slack=2)
            shared = (*shared[:4], _thresholds(*shared[:4]))
            yield check(NAME, f"{case}, gated", _kept(*gated_hidden(*shared)), reference(*shared))
    for rows in (1, 5):
        yield from _eight_bits(rows)


def _thresholds(x: Tensor, gate: Tensor, up: Tensor, norms: Tensor) -> Tensor:
    """Of a gate that drops some neurons, and where rounding decides nothing of a second one."""
    first = threshold(_exact(x, gate), 0.3)
    if x.dtype != torch.float32:
        return torch.tensor([first, -1.0], device="cuda")
    left = reference(x.double(), gate, up, norms, torch.tensor([first, -1.0], device="cuda")).abs().amax(0)
    return torch.tensor([first, threshold(left[left > 0], 0.2)], device="cuda")


def _eight_bits(rows: int) -> Iterator[Check]:
    """Weights of eight bits, of `down` too."""
    x, chosen = (
        torch.randn(rows, 1024, device="cuda").to(torch.bfloat16),
        torch.rand(777, device="cuda") < 0.7,
    )
    gate, up = torch.randint(-127, 128, (2, 777, 1024), device="cuda", dtype=torch.int8).unbind()
    down = torch.randint(-127, 128, (777, 500), device="cuda", dtype=torch.int8).t()
    scales, down_scale = torch.rand(2, 777, device="cuda") * 5e-4, torch.rand(500, device="cuda")
    shared = (torch.ones(2, 777, device="cuda"), torch.tensor([-1.0, -1.0], device="cuda"))
    hidden = reference(x, gate, up, *shared, chosen, scales=scales)
    found = _kept(*gated_hidden(x, gate, up, *shared, _lists(chosen), scales=scales))
    yield check(NAME, f"int8, {rows} rows", found, hidden)
    whole = gated_mlp(x, gate, up, down, *shared, _lists(chosen), scales=scales, down_scale=down_scale)
    truth = F.linear(hidden.double(), down.double()) * down_scale
    yield check(NAME, f"int8, {rows} rows, with down", whole, truth, slack=2)


def _lists(chosen: Tensor) -> Kept:
    return lists.reference(chosen[None].float(), torch.tensor([0.5, 0.0], device="cuda"), 256)


def _kept(hidden: Tensor, kept: Kept) -> Tensor:
    return torch.where(kept.mask(), hidden, 0.0)


def _inputs(rows: int, inputs: int, neurons: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    gate, up = (torch.randn(2, neurons, inputs, device="cuda") / inputs**0.5).to(dtype).unbind()
    return x, gate, up


def measurements() -> Iterator[Measurement]:
    """A quarter, a half of the neurons known beforehand, and half of them by their exact gate."""
    torch.manual_seed(0)
    for name, (inputs, neurons) in SHAPES.items():
        for rows in (1, 4):
            x, gate, up = _inputs(rows, inputs, neurons, torch.bfloat16)
            down = (torch.randn(neurons, inputs, device="cuda") / neurons**0.5).to(torch.bfloat16).t()
            sets = copies(gate, up, down, read=0.25)
            by_row = [(torch.cat((g, u)), d.contiguous()) for g, u, d in sets]
            others = {"cuBLAS": milliseconds([partial(_dense, x, *w) for w in by_row])}
            del by_row
            open_gates = torch.tensor([-1.0, -1.0], device="cuda")
            norms = torch.ones(2, neurons, device="cuda")
            half = _lists(torch.rand(neurons, device="cuda") < 0.5)
            found = quickest(configs(rows), partial(_time, x, sets, norms, open_gates, half))
            best = next(iter(found))
            read = 2.0 * 3 * inputs * neurons
            yield Measurement(
                NAME, f"{name}, {rows} rows, half known", found[best], others, read / 2, config=str(best)
            )
            quarter = _lists(torch.rand(neurons, device="cuda") < 0.25)
            ms = _time(x, sets, norms, open_gates, quarter, best)
            yield Measurement(
                NAME, f"{name}, {rows} rows, a quarter known", ms, others, read / 4, config=str(best)
            )
            exact = torch.tensor([float(_exact(x, gate).median()), -1.0], device="cuda")
            ms = _time(x, sets, norms, exact, None, best)
            kept = float((_exact(x, gate) > exact[0]).float().mean())
            size = read * (1 + 2 * kept) / 3
            yield Measurement(
                NAME, f"{name}, {rows} rows, {kept:.2f} by exact gates", ms, others, size, config=str(best)
            )


def _exact(x: Tensor, gate: Tensor) -> Tensor:
    """What each neuron's gate is worth to the row that wants it most."""
    return F.silu(F.linear(x.double(), gate.double())).abs().amax(0)


def _dense(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def _time(
    x: Tensor,
    sets: list[tuple[Tensor, ...]],
    norms: Tensor,
    thresholds: Tensor,
    chosen: Kept | None,
    config: Config,
) -> float:
    def run(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return gated_mlp(x, gate, up, down, norms, thresholds, chosen, config=config)

    return milliseconds([partial(run, *w) for w in sets])
