"""The list of what a mask keeps, against what torch makes of it without waiting for the device."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from srrc.backends.triton.kernels.compact import compact, reference
from srrc.bench.gpu.record import Check, Measurement, exact
from srrc.bench.gpu.timing import milliseconds

NAME = "compact"

SHAPES = {"8B cache, 32k": (8, 32768), "8B tokens, 2k": (1, 2048), "SmolLM2 cache, 8k": (3, 8192)}
"""(rows, units)"""


def checks() -> Iterator[Check]:
    """Against the reference: nothing and everything kept, sizes that are no multiples of a chunk."""
    torch.manual_seed(0)
    for rows, units in ((8, 32768), (3, 10001), (65, 77)):
        for kept in (0.0, 0.5, 1.0):
            mask = torch.rand(rows, units, device="cuda") < kept
            case = f"{rows} x {units}, {kept} kept"
            yield exact(NAME, case, *zip(compact(mask, fill=0), reference(mask), strict=True))


def measurements() -> Iterator[Measurement]:
    """Half of the units kept."""
    torch.manual_seed(0)
    for name, (rows, units) in SHAPES.items():
        mask = torch.rand(rows, units, device="cuda") < 0.5
        out = compact(mask)
        columns = torch.arange(units, dtype=torch.int32, device="cuda").expand(rows, -1)
        others = {
            "cumsum, scatter": milliseconds([partial(by_scatter, mask, columns)]),
            "sort": milliseconds([partial(by_sort, mask)]),
        }
        ms = milliseconds([partial(compact, mask, out=out)])
        yield Measurement(NAME, f"{name}, 0.5 kept", ms, others, rows * units * (1 + 0.5 * 4))


def by_scatter(mask: Tensor, columns: Tensor) -> Tensor:
    """The same in torch: what is not kept goes to a column of its own."""
    rows, units = mask.shape
    place = torch.where(mask, mask.cumsum(1) - 1, units)
    return columns.new_empty(rows, units + 1).scatter_(1, place, columns)


def by_sort(mask: Tensor) -> Tensor:
    """The same in torch: what is not kept comes last."""
    return (~mask).to(torch.uint8).sort(dim=1, stable=True).indices
