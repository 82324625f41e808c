"""What Inductor makes of the operators: our kernels among its own; on their account nothing is copied or waited for."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srrc.backends.triton.ops.block_attention import block_attention
from srrc.backends.triton.ops.block_mask import block_mask
from srrc.backends.triton.ops.compact import compact
from srrc.backends.triton.ops.estimator import estimator
from srrc.backends.triton.ops.grouped_linear import grouped_linear
from srrc.backends.triton.ops.kv_gather import kv_gather, kv_gather_into
from srrc.backends.triton.ops.token_rows import gather_rows, scatter_rows


def on_cuda(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    index, counts = block_mask(mask, q.shape[2], k.shape[2], 16, 16, True, 40)
    return block_attention(q, k, v, index, counts, 16, 16, True, 40)


def go_round(x: Tensor, keep: Tensor) -> Tensor:
    index, count = compact(keep[None], 8, 0)
    base = x * 2
    scatter_rows(base, gather_rows(x, index[0], count).relu(), index[0], count)
    return base


def evict(keys: Tensor, values: Tensor, keep: Tensor, new_keys: Tensor, new_values: Tensor) -> None:
    index, count = (found.unflatten(0, keep.shape[:2]) for found in compact(keep.flatten(0, 1)))
    kv_gather_into(keys, values, index, count, new_keys, new_values)


def keep_some(keys: Tensor, values: Tensor, index: Tensor, count: Tensor) -> Tensor:
    kept_keys, kept_values = kv_gather(keys, values, index, count)
    return kept_keys + kept_values


def mix(x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, pair_weight: Tensor) -> Tensor:
    return grouped_linear(x, weight, order, offsets, pair_weight).relu()


def estimate(x: Tensor, projection: Tensor, decoder: Tensor, norm: Tensor, gate: Tensor) -> list[Tensor]:
    return [*estimator(x.relu(), projection, decoder, norm, gate, norm)]


EXPECTED = {
    "attend": ["_compact", "_block_attention"],
    "go_round": ["_compact", "_gather", "triton", "triton", "_scatter"],
    "evict": ["_compact", "_kv_gather"],
    "keep_some": ["_kv_gather", "triton"],
    "mix": ["_grouped_linear", "triton"],
    "estimate": ["triton", "_project", "_estimate"],
}
"""By function: what it is to launch, in order."""
SIZES = ("these", "any")


def arguments() -> dict[Callable[..., Any], list[Tensor]]:
    boolean, integer, real = torch.bool, torch.int32, torch.float32
    cache, keep = (on_cuda(2, 4, 48, 64) for _ in range(4)), on_cuda(2, 4, 48, dtype=boolean)
    index, count = on_cuda(2, 4, 20, dtype=integer), on_cuda(2, 4, dtype=integer)
    keys, values, *others = cache
    per_unit = [on_cuda(11008, dtype=real), on_cuda(2, dtype=real)]
    pairs = [on_cuda(60, dtype=integer), on_cuda(9, dtype=integer), on_cuda(60, dtype=real)]
    return {
        attend: [keys, *(on_cuda(2, 2, 80, 64) for _ in range(2)), on_cuda(2, 4, 3, 5, dtype=boolean)],
        go_round: [on_cuda(30, 64), on_cuda(30, dtype=boolean)],
        evict: [keys, values, keep, *others],
        keep_some: [keys, values, index, count],
        mix: [on_cuda(30, 64), on_cuda(8, 32, 64), *pairs],
        estimate: [on_cuda(1, 4096), on_cuda(64, 4096), on_cuda(11008, 64), *per_unit],
    }


def launched(code: str) -> list[str]:
    """The kernels that a wrapper launches, in order; one that Inductor wrote is called triton."""
    names = re.findall(r"^ +(\w+?)_\d+\.run\(", code, re.MULTILINE)
    return ["triton" if name.startswith("triton_") else name for name in names]


def compile_all(card: Any) -> dict[str, list[list[str]]]:
    """By function: the codes for these sizes, and for any."""
    return {
        function.__name__: [card.codes(function, *args, dynamic=size == "any") for size in SIZES]
        for function, args in arguments().items()
    }


def two_pieces(card: Any) -> list[str]:
    def function(x: Tensor) -> Tensor:
        y = torch.relu(x)
        torch._dynamo.graph_break()
        return y + x

    return card.codes(function, on_cuda(4, 8))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def codes(on_card: Callable[[Callable[[Any], Any]], Any]) -> dict[str, list[list[str]]]:
    return on_card(compile_all)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPECTED)
def test_launches_the_kernels_and_nothing_more(
    codes: dict[str, list[list[str]]], name: str, size: str
) -> None:
    [code] = codes[name][SIZES.index(size)]
    assert launched(code) == EXPECTED[name]
    assert "torch.ops.srr" not in code
    assert ".item()" not in code
    assert bool(re.search(r"^ +s\d+ = arg", code, re.MULTILINE)) == (size == "any")


def test_a_graph_of_two_pieces(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    first, second = on_card(two_pieces)
    assert launched(first) == launched(second) == ["triton"]
