"""Attention over the key blocks that a mask names, and over no others: forward, with groups of query heads.

    blocks = compact(mask, Tq, Tk, block=(128, 128), causal=True, window=None)
    block_attention(q, k, v, blocks, scale=None, config=None) -> (out, lse)

q [B, H, Tq, D], k and v [B, G, Tk, D], H a multiple of G, D 32, 64, 128 or 256, of any strides but for D's, which is 1;
fp16, bf16 or fp32. blocks: of `block_mask`, which says what is seen within a block -> out of q's shape and layout; lse
float32 [B, H, Tq], the natural logarithm of each row's sum of exponentials, by which parts can be merged. A row that
sees no key gives zeros, and -inf. Softmax in fp32, to base 2; products of fp32 in fp32.

A program walks along two lists: whole blocks, without a mask of elements, then partial ones, with it.
Sources: FlashAttention-2 (Dao 2023); FlexAttention (Dong et al. 2024), which has the two lists; MInference (Jiang et
al. 2024).
"""

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.block_mask import Blocks, expand
from srrc.backends.triton.shared_memory import shared_memory

HEAD_SIZES = (32, 64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Config:
    """How a launch is cut: queries and keys at once, parts of the mask's blocks, and Triton's own."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def configs(block: tuple[int, int], size: int, room: int | None = None) -> tuple[Config, ...]:
    """The space worth searching for 16-bit heads of `size`, of what fits `room`: the current card's, unless given."""
    room = shared_memory(torch.device("cuda")) if room is None else room
    fitting = (config for config, needed in _space(size) if needed <= room)
    return tuple(c for c in fitting if block[0] % c.block_m == 0 and block[1] % c.block_n == 0)


def default_config(q: Tensor, block: tuple[int, int], room: int | None = None) -> Config:
    """What was quickest on an H100, or else what fits `room`: that of q's card, unless given.

    Products of fp32 are no tensor core's: small tiles, or they spill.
    """
    room = shared_memory(q.device) if room is None else room
    best = next(config for config, needed in _space(q.shape[3]) if needed <= room)
    best = Config(32, 16, 8, 2) if q.dtype == torch.float32 else best
    return replace(best, block_m=min(best.block_m, block[0]), block_n=min(best.block_n, block[1]))


def _space(size: int) -> tuple[tuple[Config, int], ...]:
    """The default, what fits every card in its stead, and others; each with the bytes of shared memory it is given for.

    Bytes: what it needs, compiled for sm_80 to sm_89 and heads of 128 or 256 (smaller ones need no more than their
    share), and 0 for what fits every card. sm_90 needs up to 1.6 times as much, and has it.
    """
    if size > 128:
        return (
            (Config(64, 32, 4, 3), 102_400),
            (Config(64, 32, 4, 2), 0),
            (Config(128, 64, 8, 2), 147_456),
            (Config(64, 64, 8, 2), 106_496),
        )
    needed = {
        Config(64, 64, 4, 3): 90_112,
        Config(64, 32, 4, 3): 0,
        Config(128, 64, 8, 3): 98_304,
        Config(128, 128, 8, 3): 163_840,
        Config(128, 64, 8, 4): 131_072,
    }
    return tuple((config, of * size // 128) for config, of in needed.items())


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Blocks,
    *,
    scale: float | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch; scale: 1 / sqrt(D) unless given. Raises ValueError for what the kernel does not take."""
    _check(q, k, v, blocks)
    batch, heads, queries, size = q.shape
    groups, keys = k.shape[1:3]
    config = config or default_config(q, blocks.block)
    scale = size**-0.5 if scale is None else scale
    if blocks.block[0] % config.block_m or blocks.block[1] % config.block_n or not scale > 0:
        raise ValueError(f"block_attention cuts blocks of {blocks.block} into equal parts and takes a scale above 0,"
                         f" not {config} and {scale}")  # fmt: skip
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lists = [0 if blocks.counts.shape[i] == 1 else blocks.counts.stride(i) // 2 for i in (0, 1)]
    # Heads of a group stand side by side: they read the same keys at about the same time.
    wrap_triton(_block_attention)[(heads // groups, triton.cdiv(queries, config.block_m), batch * groups)](
        q, k, v, blocks.index, blocks.counts, out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *lists,
        groups, queries, keys, blocks.index.shape[3], blocks.window, scale * math.log2(math.e),
        SIZE=size, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        M_PARTS=blocks.block[0] // config.block_m, N_PARTS=blocks.block[1] // config.block_n, CAUSAL=blocks.causal,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out, lse


def _check(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> None:
    batch, heads, queries, size = q.shape
    grouped = k.shape == v.shape and k.shape[0] == batch and heads % k.shape[1] == 0 and k.shape[3] == size
    if not grouped or size not in HEAD_SIZES or any(t.stride(3) != 1 for t in (q, k, v)):
        raise ValueError(f"block_attention takes q [B, H, Tq, D], k and v [B, G, Tk, D] with H a multiple of G, D of"
                         f" {HEAD_SIZES} and of stride 1, not {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
                         f" of strides {q.stride()}, {k.stride()}, {v.stride()}")  # fmt: skip
    if q.dtype not in DTYPES or {q.dtype, k.dtype, v.dtype} != {q.dtype}:
        raise ValueError(f"block_attention takes one of {DTYPES}, not {q.dtype}, {k.dtype} and {v.dtype}")
    lists, made_for = tuple(blocks.index.shape[:2]), (blocks.queries, blocks.keys)
    if made_for != (queries, k.shape[2]) or lists[0] not in (1, batch) or lists[1] not in (1, heads):
        raise ValueError(f"these blocks are for {made_for} queries and keys of {lists} batches and heads, not for"
                         f" {tuple(q.shape)} and {k.shape[2]} keys")  # fmt: skip
    many = triton.cdiv(queries, blocks.block[0]), triton.cdiv(k.shape[2], blocks.block[1])
    if blocks.index.shape[2:] != many or blocks.counts.shape != (*blocks.index.shape[:3], 2):
        raise ValueError(f"blocks of {blocks.block} are listed by an index {(*lists, *many)} and counts"
                         f" {(*lists, many[0], 2)}, not {tuple(blocks.index.shape)} and {tuple(blocks.counts.shape)}:"
                         f" were they made with another block?")  # fmt: skip


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    block: tuple[int, int] = (128, 128),
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The truth, from the mask itself, in float64 and with every element of it."""
    group = q.shape[1] // k.shape[1]
    seen = expand(mask, q.shape[2], k.shape[2], block=block, causal=causal, window=window)
    score = q.double() @ k.double().repeat_interleave(group, 1).transpose(2, 3)
    score = (score * (q.shape[3] ** -0.5 if scale is None else scale)).masked_fill(~seen, -math.inf)
    lse = score.logsumexp(3)
    weight = torch.where(seen, (score - lse[..., None]).exp(), 0.0)
    return (weight @ v.double().repeat_interleave(group, 1)).to(q.dtype), lse.float()


@triton.jit
def _block_attention(
    q, k, v, index, counts, out, lse,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, out_b, out_h, out_t, lists_b, lists_h,
    groups, queries, keys, key_blocks, window, scale,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, M_PARTS: tl.constexpr, N_PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    # The last queries see the most keys where attention is causal: they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    b = (tl.program_id(2) // groups).to(tl.int64)
    g = (tl.program_id(2) % groups).to(tl.int64)
    h = g * tl.num_programs(0) + tl.program_id(0)
    first = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, SIZE)
    mine = (first + m < queries)[:, None]
    at = q + b * q_b + h * q_h + first.to(tl.int64) * q_t
    query = tl.load(at + m[:, None] * q_t + d[None, :], mask=mine, other=0.0)
    k += b * k_b + g * k_h
    v += b * v_b + g * v_h
    line = b * lists_b + h * lists_h + tile // M_PARTS
    index += line * key_blocks
    wholes = tl.load(counts + 2 * line)
    partials = tl.load(counts + 2 * line + 1)
    position = keys - queries + first + m
    acc = tl.zeros((BLOCK_M, SIZE), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    acc, total, top = _walk(
        acc, total, top, query, k, v, k_t, v_t, index, wholes, position, n, d, keys, window, scale,
        BLOCK_N, N_PARTS, 1, CAUSAL, False,
    )  # fmt: skip
    acc, total, top = _walk(
        acc, total, top, query, k, v, k_t, v_t, index + key_blocks - 1, partials, position, n, d, keys, window, scale,
        BLOCK_N, N_PARTS, -1, CAUSAL, True,
    )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)
    at = out + b * out_b + h * out_h + first.to(tl.int64) * out_t
    tl.store(at + m[:, None] * out_t + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=mine)
    at = lse + (b * groups * tl.num_programs(0) + h) * queries + first + m
    tl.store(at, (top + tl.log2(total)) * 0.6931471805599453, mask=first + m < queries)


@triton.jit
def _walk(
    acc, total, top, query, k, v, k_t, v_t, blocks, count, position, n, d, keys, window, scale,
    BLOCK_N: tl.constexpr, N_PARTS: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Along a list of `count` blocks, each in `N_PARTS` tiles; acc is relative to 2**top, the largest of each row."""
    tiles = count * N_PARTS
    # A tile's block is read one step before: read in its own, it would halve how far ahead keys and values are.
    block = tl.load(blocks, mask=tiles > 0, other=0)
    for i in range(tiles):
        start = (block * N_PARTS + i % N_PARTS) * BLOCK_N
        block = tl.load(blocks + (i + 1) // N_PARTS * STEP, mask=i + 1 < tiles, other=0)
        k_at = k + start.to(tl.int64) * k_t + (n[:, None] * k_t + d[None, :])
        v_at = v + start.to(tl.int64) * v_t + (n[:, None] * v_t + d[None, :])
        there = n < keys - start
        key = tl.load(k_at, mask=there[:, None], other=0.0) if MASKED else tl.load(k_at)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            # What causality leaves is before the last key, but for rows that are not written.
            seen = n[None, :] <= (position - start)[:, None] if CAUSAL else there[None, :]
            if window is not None:
                seen = seen & (n[None, :] > (position - start - window)[:, None])
            score = tl.where(seen, score, float("-inf"))
        larger = tl.maximum(top, tl.max(score, 1) * scale)
        # A row that has seen nothing has no largest: its exponentials are to be 0, not NaN.
        base = tl.where(larger == float("-inf"), 0.0, larger) if MASKED else larger
        weight = tl.exp2(score * scale - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None]
        value = tl.load(v_at, mask=there[:, None], other=0.0) if MASKED else tl.load(v_at)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")
        top = larger
    return acc, total, top


def _ahead(dtype: str, size: int, config: Config, window: bool = False) -> Ahead:
    pointers = {"index": "i32", "counts": "i32", "lse": "fp32"} | dict.fromkeys(("q", "k", "v", "out"), dtype)
    numbers = [f"{name}_{of}" for name in ("q", "k", "v", "out") for of in "bht"]
    numbers += ["lists_b", "lists_h", "queries", "keys", "key_blocks"]
    signature = {name: f"*{kind}" for name, kind in pointers.items()} | dict.fromkeys(numbers, "i32:16")
    signature |= {"groups": "i32", "scale": "fp32"} | ({"window": "i32"} if window else {})
    parts = {"M_PARTS": 128 // config.block_m, "N_PARTS": 128 // config.block_n}
    constants = {"SIZE": size, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, **parts, "CAUSAL": True}
    absent = {} if window else {"window": None}
    cut = f"{config.block_m} x {config.block_n}, {config.num_stages} stages"
    name = f"block_attention[{dtype}, D {size}, {cut}{', window' if window else ''}]"
    room = dict(_space(size)).get(config, 0)
    launch = config.num_warps, config.num_stages
    return Ahead(name, _block_attention, signature, constants | absent, *launch, room=room)


AHEAD = (
    _ahead("bf16", 128, Config(64, 64, 4, 3)),
    _ahead("bf16", 128, Config(64, 64, 4, 3), window=True),
    _ahead("fp16", 128, Config(64, 64, 4, 3)),
    _ahead("bf16", 64, Config(64, 64, 4, 3)),
    _ahead("bf16", 128, Config(64, 32, 4, 3)),
    _ahead("bf16", 256, Config(64, 32, 4, 3)),
    _ahead("bf16", 256, Config(64, 32, 4, 2)),
    _ahead("fp32", 128, Config(32, 16, 8, 2)),
)
