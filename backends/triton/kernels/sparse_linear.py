"""Linear that reads the weights of the listed input channels alone.

    sparse_linear(x, kept, weight, scale=None, bias=None, gate=None) -> x[:, kept] @ weight[:, kept].T * scale + bias

x [B, K], 1 <= B <= 8; kept: lists of K channels (`lists.py`), in blocks; weight [N, K] laid out by input (strides
(1, N)), of x's dtype or int8; scale float32, for int8 alone: of each output [N], or of each channel for so many outputs
[ceil(N / SCALE_BLOCK), K]; bias [N]; gate float32 [2], for its guard -> [B, N] of x's dtype; fp16, bf16 or fp32,
accumulated in fp32. What is not listed is not read: an infinite weight there leaves no NaN. counters int64: three of
them, from the `counter`-th on, are told what the gate kept, by one of the linears that read its lists. Up to two others
of the same channels, [N', K] and [N'', K], each with its bias or None, come along in the launch: [B, N + N' + N''].

One launch: each block of channels is a part of the sum, which a program writes in fp32, and the last of a column to
arrive adds the parts up in their order. No atomic touches a value, so that the same input gives the same bits.
To skip by lists is worth their launch: where a kernel masks rows of weights out instead, as TEAL's does (Liu et al.
2024), masked ones cost instructions. On an H100 one that masks everything takes over half of a dense one's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead
from srrc.backends.triton.kernels.lists import Kept, count_kept, counting, guard_failed, guarded
from srrc.backends.triton.shared_memory import shared_memory
from srrc.ops.gate import MAX_ROWS
from srrc.ops.vocab_head import SCALE_BLOCK


@dataclass(frozen=True)
class Config:
    """How a launch is cut: channels and outputs at once, and Triton's own.

    dot:   by tensor cores, which take 16 rows at once; several rows always are
    block: channels of a list, for whoever makes the lists: a program has one, for so many outputs
    """

    block_k: int
    block_n: int
    num_warps: int
    num_stages: int
    dot: bool = True
    block: int = 256


def configs(rows: int, inputs: int, outputs: int) -> tuple[Config, ...]:
    """The space worth searching: enough in flight for each multiprocessor, in some hundreds of programs."""
    several = (Config(32, 256, 4, 4), Config(32, 128, 4, 4), Config(32, 128, 4, 6))
    shapes = several if rows > 1 else (*several, Config(16, 512, 4, 3, dot=False))
    found = []
    for config in (replace(shape, block=block) for block in (128, 256, 512, 1024) for shape in shapes):
        programs = -(-inputs // config.block) * -(-outputs // config.block_n)
        if 120 <= programs <= 2400 or config.block == 256:
            found.append(config)
    return tuple(found)


SINGLE = 73_728
"""Bytes of shared memory that float32's stages need on AMD's cards, most of which give 65,536; half on NVIDIA's."""


def default_config(inputs: int, outputs: int, dtype: torch.dtype, room: int | None = None) -> Config:
    """What is good where nothing was measured: lists of 256 channels, or larger where there are programs enough.

    dtype: of the weights; in float32 with a stage less where `room`, the current card's unless given, is less
    """
    room = shared_memory(torch.device("cuda")) if room is None else room
    less = int(dtype == torch.float32 and room < SINGLE)
    block = 512 if inputs > 8192 or outputs > 8192 else 256
    return Config(*((32, 256, 4, 4 - less) if outputs > 4096 else (32, 128, 4, 6 - less)), block=block)


def sparse_linear(
    x: Tensor,
    kept: Kept,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    counters: Tensor | None = None,
    *,
    counter: int = 0,
    others: Sequence[tuple[Tensor, Tensor | None]] = (),
    config: Config | None = None,
) -> Tensor:
    """Launch. Raises ValueError for what the kernel does not take."""
    rows, inputs = x.shape
    every = [weight, *(each for each, _ in others)]
    sizes = [each.shape[0] for each in every]
    outputs = sum(sizes)
    by_input = all(each.stride(0) == 1 or each.shape[0] == 1 for each in every)
    if len(others) > 2 or (others and scale is not None):
        raise ValueError("sparse_linear takes two other weights at most, and scales for one alone")
    if not 1 <= rows <= MAX_ROWS or not by_input or x.stride(-1) != 1 or kept.count != inputs:
        raise ValueError(
            f"sparse_linear takes 1 to {MAX_ROWS} rows, lists of their channels and a weight by input, not"
            f" {tuple(x.shape)}, lists of {kept.count} and strides {weight.stride()}"
        )
    config = config or default_config(inputs, outputs, weight.dtype, shared_memory(x.device))
    if kept.block % config.block_k:
        raise ValueError(f"lists in blocks of {kept.block} cannot be read {config.block_k} at a time")
    by_channel = scale is not None and scale.dim() == 2
    if by_channel and SCALE_BLOCK % config.block_n:
        raise ValueError(f"scales of {SCALE_BLOCK} outputs cannot serve {config.block_n} at a time")
    out = x.new_empty(rows, outputs)
    blocks, tiles = len(kept.counts), sum(triton.cdiv(size, config.block_n) for size in sizes)
    biases = [bias, *(each for _, each in others)]
    # Any bias stands for one that is absent: the kernel has an address, and adds none of it.
    some = next((each for each in biases if each is not None), None)
    bits = sum(1 << i for i, each in enumerate(biases) if each is not None)
    none, absent = [None] * (3 - len(every)), [0] * (3 - len(every))
    filled = [*(some if each is None else each for each in biases), *none]
    widths, strides = [*sizes, *absent], [*(each.stride(1) for each in every), *absent]
    parts = x.new_empty(blocks, rows, outputs, dtype=torch.float32) if blocks > 1 else None
    wrap_triton(_sparse_linear)[(tiles, blocks)](
        x, kept.units, kept.counts, kept.rows, kept.offered, gate, weight, scale, filled[0], out, parts,
        counting(x, kept, tiles), counters, counter, *every[1:], *none, *filled[1:],
        inputs, *widths, blocks, x.stride(0), *strides,
        ROWS=rows, BLOCK=kept.block, BLOCKS=triton.next_power_of_2(blocks),
        BLOCK_K=config.block_k, BLOCK_N=config.block_n, STAGES=config.num_stages, DOT=config.dot or rows > 1,
        SCALE_BLOCK=SCALE_BLOCK if by_channel else 0, BIASED=bits,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


def reference(
    x: Tensor,
    kept: Kept,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The truth, in float64, of the listed channels."""
    counts = kept.counts if gate is None else guarded(kept, gate)
    place = torch.arange(kept.block, device=x.device)
    listed = kept.units[place < counts[:, None]].long()  # waits for the device: it is a reference
    read = weight[:, listed].double()
    if scale is not None and scale.dim() == 2:
        read = read * scale.double().repeat_interleave(SCALE_BLOCK, 0)[: len(weight), listed]
        scale = None
    out = F.linear(x[:, listed].double(), read)
    out = out if scale is None else out * scale.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)


@triton.jit(do_not_specialize=["blocks"])
def _sparse_linear(
    x, units, counts, kept_rows, offered, gate, weight, scale, bias, out, parts, arrived, counters, counter,
    weight1, weight2, bias1, bias2, inputs, width, width1, width2, blocks, stride_x, stride_k, stride1, stride2,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, SCALE_BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    part = tl.program_id(1)
    outputs = width + width1 + width2
    local = tile
    start = 0
    if weight1 is not None:  # whose tile is it?
        tiles = tl.cdiv(width, BLOCK_N)
        second = tile >= tiles
        tiles1 = tiles + tl.cdiv(width1, BLOCK_N)
        local = tl.where(second, tile - tiles, tile)
        start = tl.where(second, width, 0)
        bits = tl.where(second, BIASED >> 1, BIASED)
        if weight2 is not None:
            third = tile >= tiles1
            local = tl.where(third, tile - tiles1, local)
            start = tl.where(third, width + width1, start)
            bits = tl.where(third, BIASED >> 2, bits)
            weight1 = tl.where(third, weight2, weight1)
            stride1 = tl.where(third, stride2, stride1)
            if bias is not None:
                bias1 = tl.where(third, bias2, bias1)
            width1 = tl.where(third, width2, width1)
        weight = tl.where(second, weight1, weight)
        stride_k = tl.where(second, stride1, stride_k)
        if bias is not None:
            bias = tl.where(second, bias1, bias)
        width = tl.where(second, width1, width)
    n = local * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < width
    biased = inside if weight1 is None else n < tl.where(bits & 1 != 0, width, 0)
    column = start + n
    count = tl.load(counts + part)
    if gate is not None:
        failed = guard_failed(kept_rows, gate, offered, inputs, blocks, ROWS, BLOCKS)
        count = tl.where(failed > 0, tl.minimum(inputs - part * BLOCK, BLOCK), count)
        if counters is not None:
            if (tile == 0) & (part == 0):
                count_kept(counters + counter, counts, offered, failed, inputs, blocks, ROWS, BLOCKS)
    lane = tl.arange(0, BLOCK_K)
    listed = units + part * BLOCK + lane
    if DOT:
        b = tl.arange(0, 16)
        total = tl.zeros((16, BLOCK_N), tl.float32)
    else:
        # A sum over K is left to the end: each thread has its own.
        b = tl.zeros((1,), tl.int32)
        wide = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    if SCALE_BLOCK:
        scales = scale + (tile * BLOCK_N // SCALE_BLOCK).to(tl.int64) * inputs
        scale = None
    for first in tl.range(0, count, BLOCK_K, num_stages=STAGES):
        read = first + lane < count
        # Unmasked: a list goes on to its block's end, and does not wait for its count.
        k = tl.load(listed + first)
        at = weight + k[:, None].to(tl.int64) * stride_k + n[None, :]
        w = tl.load(at, mask=read[:, None] & inside[None, :], other=0.0)
        if DOT:
            some = (b < ROWS)[:, None] & read[None, :]
            value = tl.load(x + b[:, None] * stride_x + k[None, :], mask=some, other=0.0)
            if SCALE_BLOCK:
                # Coarse on purpose: a tensor core's own rounding of float32 is finer than eight bits.
                value *= tl.load(scales + k, mask=read, other=0.0)[None, :]
                # No precision is named: TF32 is the default where a card has it, and other cards refuse its name.
                total = tl.dot(value, w.to(value.dtype), total)
            else:
                total = tl.dot(value, w.to(value.dtype), total, input_precision="ieee")
        else:
            value = tl.load(x + k, mask=read, other=0.0)
            if SCALE_BLOCK:
                value *= tl.load(scales + k, mask=read, other=0.0)
            wide += value.to(tl.float32)[:, None] * w.to(tl.float32)
    if not DOT:
        total = tl.sum(wide, 0)[None, :]
    mine = (b < ROWS)[:, None] & inside[None, :]
    at = b[:, None] * outputs + column[None, :]
    if BLOCKS > 1:
        tl.store(parts + part * ROWS * outputs + at, total, mask=mine)
        tl.debug_barrier()  # every thread's part is written before one of them says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == blocks - 1:
            tl.store(arrived + tile, 0)
            # All parts of a row at once: one after the other each would wait for memory.
            each = tl.arange(0, BLOCKS)[:, None]
            for row in tl.static_range(ROWS):
                place = parts + (each * ROWS + row) * outputs + column[None, :]
                there = (each < blocks) & inside[None, :]
                added = tl.sum(tl.load(place, mask=there, other=0.0, cache_modifier=".cg"), 0)[None, :]
                line = row * outputs + column[None, :]
                _finish(added, scale, bias, out, line, n, inside[None, :], inside, biased)
    else:
        _finish(total, scale, bias, out, at, n, mine, inside, biased)


@triton.jit
def _finish(total, scale, bias, out, at, n, mine, inside, biased):
    if scale is not None:
        total *= tl.load(scale + n, mask=inside, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + n, mask=biased, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mine)


def _ahead(
    dtype: str,
    weight: str,
    rows: int,
    config: Config,
    *,
    gate: bool = False,
    by_channel: bool = False,
    weights: int = 1,
    biased: int = 0,
    room: int = 0,
) -> Ahead:
    signature = {"x": f"*{dtype}", "weight": f"*{weight}", "out": f"*{dtype}", "parts": "*fp32"}
    signature |= dict.fromkeys(("arrived", "units", "counts", "kept_rows"), "*i32")
    signature |= {"scale": "*fp32"} if weight == "i8" else {}
    signature |= {"counters": "*i64", "gate": "*fp32"} if gate else {}
    signature |= dict.fromkeys(("weight1", "weight2")[: weights - 1], f"*{weight}")
    signature |= dict.fromkeys(("bias", "bias1", "bias2")[: weights if biased else 0], f"*{dtype}")
    numbers = ("width1", "width2", "stride1", "stride2")
    signature |= dict.fromkeys(("inputs", "width", *numbers, "stride_x", "stride_k"), "i32:16")
    signature |= {"blocks": "i32", "counter": "i32"}
    constants: dict[str, Any] = {"ROWS": rows, "BLOCK": 256, "BLOCKS": 16, "BLOCK_K": config.block_k}
    constants |= {"BLOCK_N": config.block_n, "STAGES": config.num_stages, "DOT": config.dot or rows > 1}
    constants |= {"SCALE_BLOCK": SCALE_BLOCK * by_channel, "BIASED": biased}
    optional = {"scale", "bias", "gate", "counters", "offered", "weight1", "weight2", "bias1", "bias2"}
    constants |= dict.fromkeys(optional.difference(signature))
    kind = "dot" if config.dot else "add"
    if weight == "fp32":  # the room that a program has decides
        kind += f", {config.block_n} outputs, {config.num_stages} stages"
    name = f"sparse_linear[{dtype}, {weight}, {rows} rows, {kind}{', guard' if gate else ''}"
    name += f"{', scales by channel' if by_channel else ''}{f', {weights} weights' if weights > 1 else ''}"
    name += f"{f', biases {biased:03b}' if biased else ''}]"
    return Ahead(name, _sparse_linear, signature, constants, config.num_warps, config.num_stages, room)


AHEAD = (
    *(
        _ahead(dtype, weight, rows, Config(32, 256, 4, 4))
        for dtype, weight in (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "i8"))
        for rows in (1, 8)
    ),
    *(
        _ahead("fp32", "fp32", rows, default_config(4096, outputs, torch.float32, room), room=room)
        for outputs in (4096, 6144)
        for room in (SINGLE, 0)
        for rows in (1, 8)
    ),
    _ahead("bf16", "bf16", 1, Config(16, 512, 4, 3, dot=False)),
    *(_ahead("bf16", "bf16", rows, Config(32, 128, 4, 6), gate=True) for rows in (1, 8)),
    *(_ahead("bf16", "bf16", 1, Config(32, 128, 4, 6), gate=True, weights=weights) for weights in (2, 3)),
    _ahead("bf16", "bf16", 8, Config(32, 128, 4, 6), gate=True, weights=3),
    _ahead("bf16", "bf16", 1, Config(32, 128, 4, 6), gate=True, weights=3, biased=0b101),
    _ahead("fp32", "i8", 1, Config(16, 512, 4, 3, dot=False), by_channel=True),
    _ahead("fp32", "i8", 8, Config(32, 128, 4, 4), by_channel=True),
)
