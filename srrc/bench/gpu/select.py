"""What a gate keeps, along with the norm or activation before it, against the same in torch."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.select import acted, normalised, reference, select, select_act, select_norm
from srrc.bench.gpu.lists import same_lists
from srrc.bench.gpu.record import Check, Measurement, check, exact
from srrc.bench.gpu.timing import milliseconds

NAME = "select"

EPSILON = 1e-5

SHAPES = {"8B": 4096, "SmolLM2": 576}
"""Units of a row."""


def checks() -> Iterator[Check]:
    """Against the references: dtypes, rows, emphasis, activations, a width that is no multiple of a block.

    Lists are those of the values that the kernel itself wrote: how it rounded them decides.
    """
    torch.manual_seed(0)
    for dtype, rows, units in product((torch.float32, torch.float16, torch.bfloat16), (1, 3, 8), (4096, 777)):
        x, other = (torch.randn(rows, units, device="cuda").to(dtype) for _ in range(2))
        norm, gate = torch.rand(units, device="cuda") + 0.5, torch.tensor([0.6, 0.0], device="cuda")
        emphasis = torch.rand(rows, device="cuda") + 0.5
        case = f"{dtype}, {rows} x {units}"

        def truth(values: Tensor, factors: Tensor | None = None) -> lists.Kept:
            return lists.reference(reference(values, norm, factors), gate, 256)  # noqa: B023 (called at once)

        yield same_lists(NAME, f"plain, {case}", select(x, norm, gate), truth(x))
        kept = select(x, norm, gate, emphasis)
        yield same_lists(NAME, f"emphasis, {case}", kept, truth(x, emphasis))
        for weight in (None, torch.rand(units, device="cuda").to(dtype)):
            total, out, kept = select_norm(x, other, weight, norm, gate, epsilon=EPSILON)
            which = f"norm{'' if weight is None else ' with a weight'}, {case}"
            yield exact(NAME, f"{which}, stream", (total, x + other))
            yield check(NAME, which, out, normalised(total, weight, EPSILON))
            yield same_lists(NAME, f"{which}, lists", kept, truth(out))
        for activation, up in (("silu", other), ("gelu", None), ("relu", other)):
            out, kept = select_act(x, norm, gate, up, emphasis, activation=activation)
            which = f"{activation}{'' if up is None else ' with up'}, {case}"
            yield check(NAME, which, out, acted(x, up, activation))
            yield same_lists(NAME, f"{which}, lists", kept, truth(out, emphasis))


def measurements() -> Iterator[Measurement]:
    """A norm and its list, of one row, beside the norm alone in torch."""
    torch.manual_seed(0)
    for name, units in SHAPES.items():
        x, other = (torch.randn(1, units, device="cuda").to(torch.bfloat16) for _ in range(2))
        weight, ones = torch.ones(units, device="cuda").to(x.dtype), torch.ones(units, device="cuda")
        gate = torch.tensor([0.6, 0.0], device="cuda")
        others = {"norm alone, torch": milliseconds([partial(_norm, x, other, weight)])}
        ms = milliseconds([partial(select_norm, x, other, weight, ones, gate, epsilon=EPSILON)])
        yield Measurement(NAME, f"{name}, norm and list", ms, others, 18.0 * units)


def _norm(x: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x + other, (x.shape[1],), weight, EPSILON)
