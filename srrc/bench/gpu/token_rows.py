"""Gather and scatter of tokens against torch's, at activations of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from srrc.backends.triton.kernels.compact import compact
from srrc.backends.triton.kernels.token_rows import (
    Config,
    configs,
    default_config,
    gather,
    reference_gather,
    reference_scatter,
    scatter,
)
from srrc.bench.gpu.record import Check, Measurement, check, exact
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "token_rows"

SHAPES = {"8B, 8 tokens": (8, 4096), "8B, 2k tokens": (2048, 4096), "SmolLM2, 2k tokens": (2048, 576)}
"""(tokens, width)"""


def chosen(tokens: int, many: int) -> tuple[Tensor, Tensor]:
    """The index and count of that many random tokens, with room for all."""
    mask = torch.zeros(1, tokens, dtype=torch.bool, device="cuda")
    mask[0, torch.randperm(tokens, device="cuda")[:many]] = True
    index, count = compact(mask, fill=0)
    return index[0], count


def checks() -> Iterator[Check]:
    """Against the references: dtypes, fractions, a width that is no multiple of a block."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for tokens, width, many in ((700, 4096, 350), (700, 4096, 0), (700, 4096, 700), (7, 100, 5)):
            x, rows = (torch.randn(tokens, width, device="cuda").to(dtype) for _ in range(2))
            index, count = chosen(tokens, many)
            case = f"{dtype}, {many} of {tokens} x {width}"
            yield exact(NAME, f"gather, {case}", (gather(x, index, count), reference_gather(x, index, count)))
            for add in (True, False):
                truth = reference_scatter(x, rows, index, count, add=add)
                found = scatter(x.clone(), rows, index, count, add=add)
                way = f"scatter, {'add' if add else 'write'}, {case}"
                yield check(NAME, way, found, truth) if add else exact(NAME, way, (found, truth))


def measurements() -> Iterator[Measurement]:
    """Half of the tokens kept, with room for all; the others are told how many there are."""
    torch.manual_seed(0)
    for name, (tokens, width) in SHAPES.items():
        many = tokens // 2
        index, count = chosen(tokens, many)
        at = index[:many].long()
        one = (torch.randn(tokens, width, device="cuda").to(torch.bfloat16) for _ in range(2))
        pairs = copies(*one, read=0.25)  # half of the rows of one of the two
        space = configs(width) if tokens * width > 1 << 22 else (default_config(tokens, width),)

        others = {"index_select": milliseconds([partial(torch.index_select, x, 0, at) for x, _ in pairs])}
        found = quickest(space, partial(_time, gather, [(x, index, count) for x, _ in pairs]))
        yield _best(f"gather, {name}, 0.5 kept", found, others, 2.0 * width * (many + tokens))

        others = {
            "index_add_": milliseconds(
                [partial(base.index_add_, 0, at, rows[:many]) for base, rows in pairs]
            ),
            "index_select, index_copy_": milliseconds(
                [partial(by_copy, base, rows[:many], at) for base, rows in pairs]
            ),
        }
        found = quickest(space, partial(_time, scatter, [(x, y, index, count) for x, y in pairs]))
        yield _best(f"scatter, {name}, 0.5 kept", found, others, 2.0 * width * 3 * many)


def by_copy(base: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """A deterministic scatter in torch."""
    return base.index_copy_(0, at, base.index_select(0, at) + rows)


def _time(function: Callable[..., object], given: Sequence[tuple[Tensor, ...]], config: Config) -> float:
    return milliseconds([partial(function, *each, config=config) for each in given])


def _best(case: str, found: dict[Config, float], others: dict[str, float], size: float) -> Measurement:
    config = next(iter(found))
    return Measurement(NAME, case, found[config], others, size, config=str(config))
