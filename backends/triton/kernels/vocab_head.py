"""Vocabulary head that computes exact logits for candidates, and reads no other weight.

    vocab_head(x, weight, candidates, coarse=None, scale=None, bias=None, block=64) -> logits

x [B, H], 1 <= B <= 8; weight [V, H] by row, of x's dtype or int8; scale float32 [V], for int8 alone; bias [V] or None;
candidates bool or int8: which tokens of each row [B, V], or which blocks of successive tokens [ceil(V / block)], get
x @ weight.T * scale + bias. The others get coarse [B, V] (any floating dtype, bias included) or -inf. Logits [B, V] of
x's dtype; fp16, bf16 or fp32, accumulated in fp32. Rows share each weight that is read.

One launch: a program has a part of a block to itself, so that the same input gives the same bits. Where that holds no
candidate it writes what stands there and leaves; of single candidates' blocks the weights of the others are not read.
Source: SVD-softmax (Shim et al. 2017), whose exact logits are single tokens', gathered; blocks are read in one piece.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.ops.gate import MAX_ROWS


@dataclass(frozen=True)
class Config:
    """How a launch is cut: tokens of a program (a divisor of the block) and inputs at once, and Triton's own."""

    tokens: int
    block_h: int
    num_warps: int = 4
    num_stages: int = 4


def configs(rows: int) -> tuple[Config, ...]:
    """The space worth searching: some 24 KiB under way for a program, and room for many, as most leave."""
    if rows == 1:
        return Config(16, 256), Config(32, 128), Config(64, 64), Config(32, 256, 4, 3), Config(64, 128, 8, 3)
    return Config(64, 128, 4, 3), Config(32, 128), Config(64, 64)


def default_config(rows: int, dtype: torch.dtype) -> Config:
    """What was quickest for a large head on an H100; products of float32 rows need registers."""
    return Config(32, 64) if rows > 1 and dtype == torch.float32 else configs(rows)[0]


def vocab_head(
    x: Tensor,
    weight: Tensor,
    candidates: Tensor,
    coarse: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    block: int = 64,
    config: Config | None = None,
) -> Tensor:
    """Launch. Raises ValueError for what the kernel does not take."""
    (rows, inputs), vocabulary = x.shape, len(weight)
    config = config or default_config(rows, x.dtype)
    if not 1 <= rows <= MAX_ROWS or weight.stride(1) != 1 or x.stride(1) != 1:
        raise ValueError(f"vocab_head takes 1 to {MAX_ROWS} rows and a weight by row, not {rows} and strides"
                         f" {weight.stride()}")  # fmt: skip
    blocks = triton.cdiv(vocabulary, block)
    each = candidates.dim() == 2
    fits = candidates.shape == ((rows, vocabulary) if each else (blocks,))
    if block % config.tokens or not fits or not candidates.is_contiguous():
        raise ValueError(f"vocab_head takes candidates for each row and token, or for each block of {block} tokens,"
                         f" {config.tokens} of them a program, not {candidates.shape} for {vocabulary}")  # fmt: skip
    if coarse is not None and (coarse.shape != (rows, vocabulary) or coarse.stride(1) != 1):
        raise ValueError(
            f"vocab_head takes coarse logits [{rows}, {vocabulary}] by row, not {tuple(coarse.shape)}"
        )
    if (weight.dtype == torch.int8) != (scale is not None):
        raise ValueError("vocab_head takes a scale with a weight of int8, and with no other")
    logits = x.new_empty(rows, vocabulary)
    wrap_triton(_vocab_head)[(triton.cdiv(vocabulary, config.tokens),)](
        x, weight, candidates, coarse, scale, bias, logits,
        inputs, vocabulary, x.stride(0), weight.stride(0), 0 if coarse is None else coarse.stride(0),
        ROWS=rows, BLOCK=0 if each else block, TOKENS=config.tokens, BLOCK_H=config.block_h, STAGES=config.num_stages,
        num_warps=config.num_warps,
    )  # fmt: skip
    return logits


def candidate_blocks(coarse: Tensor, best: int, block: int = 64) -> Tensor:
    """Which blocks hold the `best` blocks of any row by their largest coarse logit (NaN is the largest).

    coarse [B, V] -> bool [ceil(V / block)]. Nothing waits for the device.
    """
    rows, vocabulary = coarse.shape
    blocks = triton.cdiv(vocabulary, block)
    padded = F.pad(coarse, (0, blocks * block - vocabulary), value=float("-inf"))
    chosen = padded.view(rows, blocks, block).amax(-1).topk(min(best, blocks), sorted=False).indices
    return torch.zeros(blocks, dtype=torch.bool, device=coarse.device).scatter_(0, chosen.flatten(), True)


def reference(
    x: Tensor,
    weight: Tensor,
    candidates: Tensor,
    coarse: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    block: int = 64,
) -> Tensor:
    """The truth, in float64: weights of other blocks are left out."""
    if candidates.dim() == 2:
        coarse = x.new_full(candidates.shape, float("-inf")) if coarse is None else coarse
        whole = reference(x, weight, torch.ones(len(weight), device=x.device), None, scale, bias, block=1)
        return torch.where(candidates.bool(), whole, coarse.to(x.dtype))
    exact = candidates.bool().repeat_interleave(block)[: len(weight)]
    found = F.linear(x.double(), weight[exact].double())
    found = found if scale is None else found * scale[exact].double()
    found = found if bias is None else found + bias[exact].double()
    shape = (len(x), len(weight))
    logits = found.new_full(shape, float("-inf")) if coarse is None else coarse.double()
    return logits.masked_scatter(exact.expand(shape), found).to(x.dtype)


@triton.jit
def _vocab_head(
    x, weight, candidates, coarse, scale, bias, logits,
    inputs, vocabulary, stride_x, stride_v, stride_c,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, BLOCK_H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * TOKENS
    token = first + tl.arange(0, TOKENS)
    inside = token < vocabulary
    b = tl.arange(0, 1 if ROWS == 1 else 16)
    line = b[:, None].to(tl.int64)  # rows may lie far apart, as views do
    mine = (b < ROWS)[:, None] & inside[None, :]
    at = logits + b[:, None] * vocabulary + token[None, :]
    if BLOCK:
        read = inside
        found = tl.load(candidates + first // BLOCK).to(tl.int32)
    else:  # a candidate for one row is read for all of them
        wanted = tl.load(candidates + b[:, None] * vocabulary + token[None, :], mask=mine, other=0).to(
            tl.int32
        )
        read = tl.max(wanted, 0) != 0
        found = tl.max(tl.max(wanted, 0), 0)
    if found == 0:
        if coarse is None:
            fill = tl.full((1 if ROWS == 1 else 16, TOKENS), float("-inf"), tl.float32)
        else:
            fill = tl.load(coarse + line * stride_c + token[None, :], mask=mine, other=0.0).to(tl.float32)
        tl.store(at, fill.to(logits.dtype.element_ty), mask=mine)
    else:
        h = tl.arange(0, BLOCK_H)
        row = weight + token.to(tl.int64)[:, None] * stride_v + h[None, :]
        if ROWS == 1:
            # The products of a row need no tensor core. A sum over H is left to the end: each thread has its own.
            wide = tl.zeros((TOKENS, BLOCK_H), tl.float32)
            for start in tl.range(0, inputs, BLOCK_H, num_stages=STAGES):
                within = start + h < inputs
                value = tl.load(x + start + h, mask=within, other=0.0).to(tl.float32)
                w = tl.load(row + start, mask=read[:, None] & within[None, :], other=0.0)
                wide += value[None, :] * w.to(tl.float32)
            total = tl.sum(wide, 1)[None, :]
        else:
            total = tl.zeros((16, TOKENS), tl.float32)
            for start in tl.range(0, inputs, BLOCK_H, num_stages=STAGES):
                within = start + h < inputs
                some = (b < ROWS)[:, None] & within[None, :]
                value = tl.load(x + line * stride_x + start + h[None, :], mask=some, other=0.0)
                w = tl.load(row + start, mask=read[:, None] & within[None, :], other=0.0)
                total = tl.dot(value, tl.trans(w.to(value.dtype)), total, input_precision="ieee")
        if scale is not None:
            total *= tl.load(scale + token, mask=inside, other=0.0)[None, :]
        if bias is not None:
            total += tl.load(bias + token, mask=inside, other=0.0).to(tl.float32)[None, :]
        if not BLOCK:
            if coarse is None:
                rest = tl.full((1 if ROWS == 1 else 16, TOKENS), float("-inf"), tl.float32)
            else:
                rest = tl.load(coarse + line * stride_c + token[None, :], mask=mine, other=0.0).to(tl.float32)
            total = tl.where(wanted != 0, total, rest)
        tl.store(at, total.to(logits.dtype.element_ty), mask=mine)


def _ahead(dtype: str, weight: str, rows: int, *, coarse: bool = True, each: bool = False) -> Ahead:
    config = default_config(rows, torch.float32 if dtype == "fp32" else torch.bfloat16)
    absent = {"bias"} | (set() if coarse else {"coarse"}) | (set() if weight == "i8" else {"scale"})
    signature = {"x": f"*{dtype}", "weight": f"*{weight}", "candidates": "*i1", "logits": f"*{dtype}"}
    signature |= dict.fromkeys({"coarse", "scale"} - absent, "*fp32")
    signature |= dict.fromkeys(("inputs", "vocabulary", "stride_x", "stride_v", "stride_c"), "i32:16")
    constants = {"ROWS": rows, "BLOCK": 0 if each else 64, "TOKENS": config.tokens, "BLOCK_H": config.block_h}
    constants |= {"STAGES": config.num_stages}
    name = f"vocab_head[{dtype}, {weight}, {rows} rows{'' if coarse else ', no coarse'}{', each' if each else ''}]"
    return Ahead(name, _vocab_head, signature, constants | dict.fromkeys(absent), config.num_warps)


AHEAD = (
    *(
        _ahead(dtype, weight, rows)
        for dtype, weight in (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "i8"), ("fp32", "fp32"))
        for rows in (1, 8)
    ),
    *(_ahead("bf16", "bf16", rows, coarse=False) for rows in (1, 8)),
    *(_ahead("bf16", "bf16", rows, each=True) for rows in (1, 8)),
)
