"""What Inductor makes of the operators: our kernels among its own; on their account nothing is copied or waited for."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from srrc.backends.triton.ops import vocab_head  # noqa: F401  (defines it, and channel_linear)
from srrc.backends.triton.ops.block_attention import block_attention
from srrc.backends.triton.ops.block_mask import block_mask
from srrc.backends.triton.ops.compact import compact
from srrc.backends.triton.ops.estimator import estimator
from srrc.backends.triton.ops.grouped_linear import grouped_linear
from srrc.backends.triton.ops.kv_gather import kv_gather, kv_gather_into
from srrc.backends.triton.ops.token_rows import gather_rows, scatter_rows
from srrc.backends.triton.shared_memory import LEAST


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


def project(x: Tensor, weights: list[Tensor], biases: list[Tensor | None], *rest: Tensor) -> Tensor:
    return torch.ops.srr_triton.channel_linear(x, weights, biases, *rest)  # type: ignore[no-any-return]


def head(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    return torch.ops.srr_triton.vocab_head(x, weight, None, *rest, 40)  # type: ignore[no-any-return]


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


def with_a_bias_absent(card: Any) -> list[str]:
    """The query, key and value of a decoder of Whisper's: there is no bias for keys."""
    real = torch.float32
    weights = [on_cuda(1280, 1280).t() for _ in range(3)]
    rest = (on_cuda(1280, dtype=real), on_cuda(2, dtype=real), on_cuda(3, dtype=torch.int64))
    return card.codes(project, on_cuda(1, 1280), weights, [on_cuda(1280), None, on_cuda(1280)], *rest)  # type: ignore[no-any-return]


def with_a_padded_copy(card: Any) -> list[str]:
    real = torch.float32
    coarse = on_cuda(64, 9008, dtype=torch.int8).t()
    numbers = (
        on_cuda(3, 64, dtype=real),
        on_cuda(9008, dtype=real),
        on_cuda(64, dtype=real),
        on_cuda(2, dtype=real),
    )
    rest = (on_cuda(64, 64), on_cuda(64, dtype=real), coarse, *numbers, on_cuda(4, dtype=torch.int64))
    return card.codes(head, on_cuda(1, 64), on_cuda(9001, 64), *rest)  # type: ignore[no-any-return]


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


def on_two_cards(card: Any) -> list[str]:
    """Attention with large heads, on an H100 and on a card of the least shared memory."""
    q, mask = on_cuda(1, 2, 64, 256), on_cuda(1, 1, 4, 4, dtype=torch.bool)
    codes = card.codes(attend, q, q, q, mask)
    small = SimpleNamespace(
        **vars(torch.cuda.get_device_properties()) | {"shared_memory_per_block_optin": LEAST}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: small)
        return codes + card.codes(attend, q, q, q, mask)  # type: ignore[no-any-return]


def two_pieces(card: Any) -> list[str]:
    def function(x: Tensor) -> Tensor:
        y = torch.relu(x)
        torch._dynamo.graph_break()
        return y + x

    return card.codes(function, on_cuda(4, 8))  # type: ignore[no-any-return]


def numbers_of(code: str, kernel: str) -> list[int]:
    """The numbers that a wrapper gives to a kernel that it launches once, in order."""
    [given] = re.findall(rf"^ +{kernel}_\d+\.run\((.*), stream=", code, re.MULTILINE)
    return [int(each) for each in given.split(", ") if each.isdigit()]


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


def test_a_launch_fits_the_card(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    large, small = (re.findall(r"'num_stages': (\d)", code) for code in on_card(on_two_cards))
    assert large == ["3", "3"]  # the list's, and attention's
    assert small == ["3", "2"]


def test_a_graph_of_two_pieces(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    first, second = on_card(two_pieces)
    assert launched(first) == launched(second) == ["triton"]


def test_a_bias_that_is_absent_takes_no_launch(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Neither one of its own for that weight, nor one for zeros in its place."""
    [code] = on_card(with_a_bias_absent)
    assert launched(code) == ["_select", "_sparse_linear"]
    sizes = numbers_of(code, "_sparse_linear")
    assert sizes.count(1280) == 8  # inputs, the stride of x, three widths and their strides


def test_a_padded_copy_is_read_in_whole_pieces(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Where a row and what is read of it are multiples of 16 bytes, a thread loads as many at once, not one by one."""
    [code] = on_card(with_a_padded_copy)
    numbers = numbers_of(code, "_sparse_linear")
    assert numbers.count(9008) == 2  # width and stride
    assert 9001 not in numbers
