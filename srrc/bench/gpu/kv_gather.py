"""The gather of a pruned cache against torch.gather and index_select, at caches of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from srrc.backends.triton.kernels.kv_gather import (
    Config,
    configs,
    default_config,
    kv_gather,
    positions,
    reference,
)
from srrc.bench.gpu.record import Check, Measurement, exact
from srrc.bench.gpu.timing import copies, milliseconds, quickest

NAME = "kv_gather"

SHAPES = {"8B, 32k": (8, 32768, 128), "SmolLM2, 8k": (3, 8192, 64)}
"""(heads, positions, width)"""


def kept_positions(batch: int, heads: int, many: int, kept: float) -> Tensor:
    """A mask that keeps as many positions in every head."""
    keep = torch.zeros(batch, heads, many, dtype=torch.bool, device="cuda")
    order = torch.rand(batch, heads, many, device="cuda").argsort(-1)
    return keep.scatter_(2, order[..., : round(kept * many)], True)


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, layouts, fractions, a width that is no power of two."""
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn)
    cases = [(dtype, kept, 128) for dtype in dtypes for kept in (0.0, 0.3, 1.0)]
    for dtype, kept, width in [*cases, (torch.bfloat16, 0.3, 96)]:
        cache, out = ((8 * torch.randn(2, 2, 4, 1001, width, device="cuda")).to(dtype) for _ in range(2))
        keep = torch.rand(2, 4, 1001, device="cuda") < kept
        index, count = positions(keep)
        truth = out.clone()
        kv_gather(cache[0], cache[1], index, count, (out[0], out[1]))
        reference(cache[0], cache[1], index, count, (truth[0], truth[1]))
        yield exact(NAME, f"{dtype}, {width} wide, {kept} kept", (out, truth))
    cache = torch.randn(2, 2, 1001, 4, 128, device="cuda").to(torch.bfloat16).transpose(2, 3)
    index, count = positions(torch.ones(2, 4, 1001, dtype=torch.bool, device="cuda"))
    found = kv_gather(cache[0], cache[1], index, count)
    yield exact(NAME, "heads inside, all kept", *zip(found, cache, strict=True))


def measurements() -> Iterator[Measurement]:
    """Into a cache that has room for everything; the others are told how many there are."""
    torch.manual_seed(0)
    for name, (heads, many, width) in SHAPES.items():
        keys, values = torch.randn(2, 1, heads, many, width, device="cuda").to(torch.bfloat16)
        caches = copies(keys, values, read=0.1)
        best: Config | None = None
        for kept in (0.5, 0.1):
            index, count = positions(kept_positions(1, heads, many, kept))
            some = index[..., : round(kept * many)].long()
            wide = some[..., None].expand(-1, -1, -1, width)
            flat = (some + many * torch.arange(heads, device="cuda")[:, None]).flatten()
            others = {
                "torch.gather": milliseconds([partial(by_gather, k, v, wide) for k, v in caches]),
                "index_select": milliseconds([partial(by_index_select, k, v, flat) for k, v in caches]),
            }
            best = best or _best(caches, index, count)
            size = heads * round(kept * many) * (2 * 2 * 2 * width + 4)
            ms = _time(caches, index, count, best)
            yield Measurement(NAME, f"{name}, {kept} kept", ms, others, size, config=str(best))


def by_gather(keys: Tensor, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch, `at` int64 [B, H, S', D]."""
    return keys.gather(2, at), values.gather(2, at)


def by_index_select(keys: Tensor, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch, `at` int64 [B * H * S'], rows of all heads."""
    return keys.flatten(0, 2).index_select(0, at), values.flatten(0, 2).index_select(0, at)


def _best(caches: list[tuple[Tensor, ...]], index: Tensor, count: Tensor) -> Config:
    keys = caches[0][0]
    if keys.shape[-1] < 128:  # compiling takes longer than there is to gain
        return default_config(keys.shape[-1] * keys.element_size())
    return next(iter(quickest(configs(), partial(_time, caches, index, count))))


def _time(caches: list[tuple[Tensor, ...]], index: Tensor, count: Tensor, config: Config) -> float:
    out = torch.empty_like(caches[0][0]), torch.empty_like(caches[0][1])
    calls = [partial(kv_gather, k, v, index, count, out, config=config) for k, v in caches]
    return milliseconds(calls)
