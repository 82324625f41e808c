"""Attention over blocks against dense causal attention and FlexAttention, at shapes of Llama-3-8B and SmolLM2-135M."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from srrc.backends.triton.kernels.block_attention import Config, block_attention, configs, reference
from srrc.backends.triton.kernels.block_mask import Blocks, compact
from srrc.bench.gpu.baselines import Baselines
from srrc.bench.gpu.record import Check, Measurement, check
from srrc.bench.gpu.timing import milliseconds, queued_milliseconds, quickest

NAME = "block_attention"

BLOCK = 128
"""Queries and keys of a block, as FlexAttention takes them best."""

SHAPES = {"8B": (32, 8, 128, (8192, 32768)), "SmolLM2": (9, 3, 64, (8192,))}
"""(query heads, key heads, size of a head, tokens)"""

DENSITIES = (1.0, 0.5, 0.25)


def drawn(batch: int, heads: int, tokens: int, size: int, dtype: torch.dtype) -> Tensor:
    """[B, H, T, D], laid out [B, T, H, D] as projections leave it."""
    return torch.randn(batch, tokens, heads, size, device="cuda").to(dtype).transpose(1, 2)


def below_diagonal(heads: int, tokens: int, kept: float) -> Tensor:
    """A mask for each head, of a fraction of the blocks that causality leaves: the diagonal's, and others at random."""
    side = tokens // BLOCK
    score = torch.rand(heads, side, side, device="cuda")
    score.diagonal(dim1=1, dim2=2).fill_(-1)
    score.masked_fill_(torch.ones(side, side, dtype=torch.bool, device="cuda").triu(1), 2)
    count = max(side, round(kept * side * (side + 1) / 2))
    return (score <= score.flatten(1).kthvalue(count).values[:, None, None])[None]


def checks() -> Iterator[Check]:
    """Against the reference: dtypes, heads, windows, the last queries alone, sizes that are no multiples of a block."""
    torch.manual_seed(0)
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    for dtype, size, queries, keys, causal, window in (
        (brain, 128, 2048, 2048, True, None),
        (brain, 128, 1100, 1900, True, None),
        (half, 128, 1100, 1900, True, None),
        (single, 128, 1100, 1900, True, None),
        (brain, 128, 1100, 1900, True, 300),
        (brain, 64, 1100, 1900, True, None),
        (half, 256, 700, 900, False, None),
    ):
        q, (k, v) = drawn(2, 8, queries, size, dtype), (drawn(2, 2, keys, size, dtype) for _ in range(2))
        mask = torch.rand(2, 8, -(-queries // BLOCK), -(-keys // BLOCK), device="cuda") < 0.4
        mask[:, :, 0] = False
        blocks = compact(mask, queries, keys, causal=causal, window=window)
        out, lse = block_attention(q, k, v, blocks)
        truth, sums = reference(q, k, v, mask, causal=causal, window=window)
        case = f"{dtype}, D {size}, {queries} of {keys}, {'causal' if causal else 'all'}, window {window}"
        yield check(NAME, case, out, truth, slack=2)  # its weights are rounded too
        yield check(NAME, f"{case}, lse", lse.nan_to_num(neginf=0), sums.nan_to_num(neginf=0))


def measurements() -> Iterator[Measurement | Check]:
    """The configuration that is best where half of the first length's blocks are kept, at each length and fraction."""
    torch.manual_seed(0)
    for name, (heads, groups, size, lengths) in SHAPES.items():
        best: Config | None = None
        for tokens in lengths:
            q = drawn(1, heads, tokens, size, torch.bfloat16)
            k, v = (drawn(1, groups, tokens, size, torch.bfloat16) for _ in range(2))
            dense = _dense(q, k, v)
            best = best or _best(q, k, v, compact(below_diagonal(heads, tokens, 0.5), tokens, tokens))
            for kept in DENSITIES:
                mask = below_diagonal(heads, tokens, kept)
                blocks = compact(mask, tokens, tokens)
                ms = _time(q, k, v, blocks, best)
                others, case = dense.also(), f"{name}, {tokens} tokens, {kept} of the blocks"
                if name == "8B":
                    yield from _flex(q, k, v, mask, case, others)
                flops = 4.0 * size * _pairs(mask, tokens)
                moved = 2.0 * (2 * q.numel() + 2 * k.numel())
                yield Measurement(NAME, case, ms, others.ms, moved, flops, str(best), others.missing)
            ms = milliseconds([partial(compact, mask, tokens, tokens)])
            moved = mask.numel() + 4.0 * int(mask.sum())
            yield Measurement(NAME, f"{name}, {tokens} tokens, compaction alone", ms, bytes=moved)


def _pairs(mask: Tensor, tokens: int) -> float:
    """Queries and keys that see each other, over all heads."""
    heads, side = mask.shape[1], tokens // BLOCK
    return (float(mask.sum()) - heads * side) * BLOCK**2 + heads * side * BLOCK * (BLOCK + 1) / 2


def _best(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Config:
    return next(iter(quickest(configs(blocks.block, q.shape[3]), partial(_time, q, k, v, blocks))))


def _time(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, config: Config) -> float:
    return queued_milliseconds(lambda: block_attention(q, k, v, blocks, config=config), calls=_calls(q))


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Baselines:
    """Causal attention over everything."""

    def ms(backend: SDPBackend) -> float:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return queued_milliseconds(call, calls=_calls(q))

    found = Baselines()
    found.time("SDPA flash, dense", lambda: ms(SDPBackend.FLASH_ATTENTION))
    found.time("SDPA cuDNN, dense", lambda: ms(SDPBackend.CUDNN_ATTENTION))
    return found


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, case: str, others: Baselines) -> Iterator[Check]:
    """FlexAttention over the same blocks: its time, and whether ours is right, which no reference could say of so many
    keys. Where the two differ its time is worth nothing.
    """
    name, tokens = "FlexAttention", (q.shape[2], k.shape[2])
    try:
        call = _flex_call(q, k, v, mask)
        truth = call()
    except Exception as error:  # noqa: BLE001 (a compiler that fails raises what it likes)
        others.lacks(name, error)
        return
    mine, _ = block_attention(q, k, v, compact(mask, *tokens))
    found = check(NAME, f"{case}, against {name}", mine, truth, slack=4)  # both round their weights
    yield found
    if found.passed:
        others.time(name, lambda: queued_milliseconds(call, calls=_calls(q)))
    else:
        others.missing[name] = "it says something else than ours"


def _flex_call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """Compiled; blocks of the diagonal are masked by element."""
    from torch.nn.attention.flex_attention import BlockMask

    diagonal = torch.eye(mask.shape[2], dtype=torch.bool, device=mask.device)
    (some, every), sizes = (_listed(mask & diagonal), _listed(mask & ~diagonal)), (BLOCK, BLOCK)
    blocks = BlockMask.from_kv_blocks(*some, *every, sizes, _causal, (q.shape[2], k.shape[2]))
    return lambda: _compiled()(q, k, v, block_mask=blocks, enable_gqa=True)


def _listed(part: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each query block sees, and which, those first."""
    order = part.to(torch.int32).argsort(dim=3, descending=True, stable=True)
    return part.sum(3).to(torch.int32), order.to(torch.int32)


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def _calls(q: Tensor) -> int:
    """In a row."""
    return 2 if q.shape[2] > 16384 else 10
