"""Grouped linear: each pair of a token and an expert through its expert's weight, in one launch.

    grouped_linear(x, weight, order, offsets, pair_weight=None, scale=None) -> out
    out[i] = x[order[i]] @ weight[e].T * scale[e] * pair_weight[i]

    x            [T, K], contiguous rows of fp16, bf16 or fp32
    weight       [E, N, K] of x's dtype or int8; any strides of which N's or K's is 1
    order        int32 [P], the row of x that pair i reads; None where x has a row for each pair, in their order
    offsets      int32 [E + 1], rising: e's pairs are offsets[e] to offsets[e + 1]. Pairs before offsets[0] and from
                 offsets[E] on are of no expert (a router dropped them, or they are another shard's), and their rows
                 of the result are 0
    pair_weight  float32 [P], the router's
    scale        float32 [E, N], for a weight of int8 and for no other
    out          [P, N] of x's dtype, accumulated in fp32

`route` makes order and offsets of a router's choice. Which tile is whose is found on the device: the grid has as many
tiles as any routing may need, every program counts those of the experts before it, and what is left over leaves. An
expert without pairs costs nothing.
Source: grouped products of MegaBlocks (Gale et al. 2022).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
MAX_EXPERTS = 256


@dataclass(frozen=True)
class Config:
    """How a launch is cut: pairs, outputs and inputs at once, tiles of pairs that share weights, and Triton's own."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8


@dataclass(frozen=True)
class Routing:
    """The pairs of a router's choice, sorted by expert.

    order:   int32 [P], the token of each
    offsets: int32 [E + 1], where each expert's begin
    pair:    int64 [P], which entry of the choice, flattened, each is: pair_weight = weights.flatten()[pair]
    """

    order: Tensor
    offsets: Tensor
    pair: Tensor


def route(expert: Tensor, experts: int) -> Routing:
    """Sort a choice [T, top_k] of integers below `experts`, -1 or `experts` for a dropped pair. Waits for nothing."""
    chosen, pair = expert.flatten().sort(stable=True)
    order = (pair // expert.shape[1]).to(torch.int32)
    bounds = torch.arange(experts + 1, dtype=chosen.dtype, device=chosen.device)
    return Routing(order, torch.searchsorted(chosen, bounds, out_int32=True), pair)


def configs(pairs: int, experts: int) -> tuple[Config, ...]:
    """The space worth searching, by the pairs that an expert gets: few read weights, many compute."""
    few = (Config(16, 64, 128, 4, 3), Config(16, 32, 128, 4, 4), Config(16, 64, 64, 4, 5))
    some = (Config(64, 64, 64, 4, 4), Config(64, 128, 64, 4, 3), Config(128, 128, 64, 8, 3))
    many = (Config(64, 128, 64, 4, 3), Config(128, 128, 64, 8, 3), Config(128, 256, 64, 8, 3))
    each = pairs / experts
    return few if each <= 8 else some if each <= 96 else many


def default_config(pairs: int, experts: int, dtype: torch.dtype) -> Config:
    """What is good where nothing was measured."""
    each = pairs / experts
    if dtype == torch.float32:
        return Config(16, 64, 32, 4, 3) if each <= 8 else Config(64, 64, 16, 8, 3)
    if each <= 8:
        return Config(16, 64, 128, 4, 3)
    return Config(64, 128, 64, 4, 3) if each <= 32 else Config(128, 128, 64, 8, 3)


def tiles(pairs: int, experts: int, block_m: int) -> int:
    """The most tiles that any routing needs: each group but for its full tiles has one that may hold a single pair.

    Pairs of no expert are a group too.
    """
    groups = min(experts + 1, pairs)
    return (pairs + groups * (block_m - 1)) // block_m


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    offsets: Tensor,
    pair_weight: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """Launch. Raises ValueError for what the kernel does not take."""
    _demand(x, weight, order, offsets, pair_weight, scale)
    experts, outputs, inputs = weight.shape
    pairs = (x if order is None else order).shape[0]
    out = x.new_empty(pairs, outputs)
    if out.numel() == 0:
        return out
    config = config or default_config(pairs, experts, x.dtype)
    tiles_m = tiles(pairs, experts, config.block_m)
    wrap_triton(_grouped_linear)[(tiles_m * triton.cdiv(outputs, config.block_n),)](
        x, weight, order, offsets, pair_weight, scale, out,
        tiles_m, pairs, experts, outputs, inputs, x.stride(0), *weight.stride(),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP=config.group,
        BLOCK_E=triton.next_power_of_2(experts + 1), EVEN_K=inputs % config.block_k == 0,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


def _demand(
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    offsets: Tensor,
    pair_weight: Tensor | None,
    scale: Tensor | None,
) -> None:
    """Raise ValueError unless the kernel takes these."""
    if (
        x.ndim != 2
        or weight.ndim != 3
        or x.shape[1] != weight.shape[2]
        or not 1 <= len(weight) <= MAX_EXPERTS
    ):
        raise ValueError(
            f"grouped_linear takes x [tokens, inputs] and weight [1 to {MAX_EXPERTS}, outputs, inputs], not"
            f" {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x.dtype not in DTYPES or weight.dtype not in {x.dtype, torch.int8}:
        raise ValueError(
            f"grouped_linear takes fp16, bf16 or fp32, the same twice or a weight of int8, not"
            f" {x.dtype} and {weight.dtype}"
        )
    if (weight.dtype == torch.int8) != (scale is not None):
        raise ValueError("grouped_linear takes a scale with a weight of int8, and with no other")
    if x.stride(1) != 1 or 1 not in weight.stride()[1:]:
        raise ValueError(
            f"grouped_linear takes contiguous rows, not strides {x.stride()} and {weight.stride()}"
        )
    pairs = (x if order is None else order).shape[0]
    lists = {"order": (order, torch.int32, [pairs]), "offsets": (offsets, torch.int32, [len(weight) + 1])}
    lists["pair_weight"] = pair_weight, torch.float32, [pairs]
    lists["scale"] = scale, torch.float32, [*weight.shape[:2]]
    for name, (found, dtype, shape) in lists.items():
        if found is not None and (
            found.dtype != dtype or list(found.shape) != shape or not found.is_contiguous()
        ):
            raise ValueError(
                f"grouped_linear takes {name} {shape} of {dtype}, not {tuple(found.shape)} of {found.dtype}"
            )


def reference(
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    offsets: Tensor,
    pair_weight: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """The truth, in float64: an expert at a time."""
    rows = x if order is None else x[order.long()]
    out = torch.zeros(len(rows), weight.shape[1], dtype=torch.float64, device=x.device)
    bounds = offsets.tolist()
    for e, (first, past) in enumerate(pairwise(bounds)):
        out[first:past] = F.linear(rows[first:past].double(), weight[e].double())
        if scale is not None:
            out[first:past] *= scale[e].double()
    return (out if pair_weight is None else out * pair_weight.double()[:, None]).to(x.dtype)


@triton.jit(do_not_specialize=["tiles_m", "pairs", "experts"])
def _grouped_linear(
    x, weight, order, offsets, pair_weight, scale, out,
    tiles_m, pairs, experts, outputs, inputs, stride_x, stride_e, stride_n, stride_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    # Some tiles of pairs at the same outputs, then at the next: what they share stays in the L2 cache.
    across = GROUP * tl.cdiv(outputs, BLOCK_N)
    first = tl.program_id(0) // across * GROUP
    deep = tl.minimum(tiles_m - first, GROUP)
    tile = first + tl.program_id(0) % across % deep
    n = tl.program_id(0) % across // deep * BLOCK_N + tl.arange(0, BLOCK_N)

    # Whose tile: one past the last expert stands for the pairs of none, what is past that has no pairs. Those of none
    # are the last ones, and then, counted on from the number of pairs, the first.
    e = tl.arange(0, BLOCK_E)
    past = pairs + tl.load(offsets)
    begin = tl.load(offsets + e, mask=e <= experts, other=past)
    end = tl.load(offsets + e + 1, mask=e < experts, other=past)
    needed = (end - begin + BLOCK_M - 1) // BLOCK_M
    before = tl.cumsum(needed, 0) <= tile
    expert = tl.sum(before.to(tl.int32), 0)
    if expert > experts:
        return
    start = tl.sum(tl.where(e == expert, begin, 0), 0)
    stop = tl.sum(tl.where(e == expert, end, 0), 0)
    i = start + (tile - tl.sum(tl.where(before, needed, 0), 0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    mine = i < stop

    row = i
    if order is not None:
        row = tl.load(order + i, mask=i < tl.minimum(stop, pairs), other=0)
    k = tl.arange(0, BLOCK_K)
    inside = n < outputs
    at_x = x + row.to(tl.int64)[:, None] * stride_x + k[None, :]
    at_w = (
        weight
        + expert.to(tl.int64) * stride_e
        + k.to(tl.int64)[:, None] * stride_k
        + n.to(tl.int64)[None, :] * stride_n
    )
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps = tl.where(expert < experts, tl.cdiv(inputs, BLOCK_K), 0)
    for step in range(steps):
        if EVEN_K:
            value = tl.load(at_x, mask=mine[:, None], other=0.0)
            w = tl.load(at_w, mask=inside[None, :], other=0.0)
        else:
            left = k < inputs - step * BLOCK_K
            value = tl.load(at_x, mask=mine[:, None] & left[None, :], other=0.0)
            w = tl.load(at_w, mask=left[:, None] & inside[None, :], other=0.0)
        total = tl.dot(value, w.to(value.dtype), total, input_precision="ieee")
        at_x += BLOCK_K
        at_w += BLOCK_K * stride_k
    if scale is not None:
        has = n < tl.where(expert < experts, outputs, 0)  # one past the last expert has no scale
        total *= tl.load(scale + expert.to(tl.int64) * outputs + n, mask=has, other=0.0)[None, :]
    i = tl.where(i < pairs, i, i - pairs)  # here and not above: to hold them through the loop takes registers
    if pair_weight is not None:
        total *= tl.load(pair_weight + i, mask=mine, other=0.0)[:, None]
    at = out + i.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mine[:, None] & inside[None, :])


def _ahead(dtype: str, config: Config, experts: int, by_input: bool, *, int8: bool = False) -> Ahead:
    signature = dict.fromkeys(("x", "weight", "out"), f"*{dtype}")
    signature |= {"weight": "*i8", "scale": "*fp32"} if int8 else {}
    signature |= {"order": "*i32", "offsets": "*i32", "pair_weight": "*fp32"}
    signature |= dict.fromkeys(("tiles_m", "pairs", "experts"), "i32")
    signature |= dict.fromkeys(("outputs", "inputs", "stride_x", "stride_e"), "i32:16")
    signature["stride_k" if by_input else "stride_n"] = "i32:16"
    constants: dict[str, Any] = {} if int8 else {"scale": None}
    constants |= {"stride_n" if by_input else "stride_k": 1, "GROUP": config.group, "EVEN_K": True}
    constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    constants["BLOCK_E"] = triton.next_power_of_2(experts + 1)
    name = f"grouped_linear[{dtype}{', i8' if int8 else ''}, {config.block_m} pairs, {experts} experts"
    name += ", by input]" if by_input else "]"
    return Ahead(name, _grouped_linear, signature, constants, config.num_warps, config.num_stages)


AHEAD = (
    *(
        _ahead(name, default_config(pairs, 8, dtype), experts, by_input)
        for dtype, name in DTYPES.items()
        for pairs, experts, by_input in (
            (2, 8, False),
            (2, 256, False),
            (400, 64, False),
            (400, 64, True),
            (4096, 8, False),
        )
    ),
    *(
        _ahead("bf16", default_config(pairs, experts, torch.bfloat16), experts, by_input=False, int8=True)
        for pairs, experts in ((2, 8), (4096, 8))
    ),
)
