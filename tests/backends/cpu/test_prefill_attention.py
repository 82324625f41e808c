"""srr::prefill_attention: blocks of queries, each with the keys it sees, against torch on everything."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.ops import prefill_attention

ops = torch.ops.srr
SCALE = 0.2
LOWEST = torch.finfo(torch.float32).min

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def seen_by(kind: str, queries: int, keys: int) -> Tensor:
    """Bool [queries, keys]."""
    q, k = torch.arange(queries)[:, None], torch.arange(keys)[None]
    return {
        "causal": k <= q,
        "padded": (k <= q + 5) & (k >= 5),
        "window": (k <= q) & (k > q - 40),
        "behind a prefix": k <= q + keys // 2,
        "the whole of a part": (k < keys // 3 + 1).expand(queries, keys),
        "random": torch.rand(queries, keys) > 0.7,
        "nothing": torch.zeros(queries, keys, dtype=torch.bool),
        "some rows nothing": (k <= q) & (q % 3 > 0),
    }[kind]


@st.composite
def cases(draw: Any) -> Case:
    torch.manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    batch, kv_heads, group = draw(st.sampled_from(((1, 3, 3), (2, 1, 2), (2, 2, 1))))
    queries, keys = draw(st.sampled_from((9, 64, 65, 130))), draw(st.sampled_from((1, 63, 130, 300)))
    heads = kv_heads * group

    def tensor(count: int, length: int) -> Tensor:
        if draw(st.booleans()):
            return torch.randn(batch, length, count, 16).to(dtype).transpose(1, 2)
        return torch.randn(batch, count, length, 16).to(dtype)

    kinds = ["causal", "padded", "window", "behind a prefix", "the whole of a part", "random", "nothing"]
    seen = seen_by(draw(st.sampled_from([*kinds, "some rows nothing"])), queries, keys)
    mask: Tensor = seen.view((*draw(st.sampled_from(((), (1, 1)))), queries, keys))
    low = draw(st.sampled_from((None, -math.inf, torch.finfo(dtype).min)))
    if low is not None:
        mask = torch.randn(mask.shape).to(dtype).masked_fill(~mask, low)
    if mask.dim() == 4 and draw(st.booleans()):
        mask = mask.expand(batch, heads, queries, keys)
    return tensor(heads, queries), tensor(kv_heads, keys), tensor(kv_heads, keys), mask


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_equals_torch(kernels: str, assert_as_good: Any, case: Case) -> None:
    y = ops.prefill_attention(*case, SCALE)
    expected = prefill_attention.reference(*case, SCALE)
    assert y.stride() == expected.stride()
    wide = (t if t.dtype == torch.bool else t.double() for t in case)
    assert_as_good(y, expected, prefill_attention.reference(*wide, SCALE), scale=case[2])


@pytest.mark.parametrize("low", [None, -math.inf, LOWEST])
def test_the_empty_rest_of_a_cache_is_not_read(kernels: str, low: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16) for length in (100, 400, 400))
    k[:, :, 100:], v[:, :, 100:] = math.nan, math.nan
    mask = seen_by("causal", 100, 400)[None, None]
    expected = prefill_attention.reference(q, k[:, :, :100], v[:, :, :100], mask[..., :100], SCALE)
    if low is not None:
        mask = torch.zeros(mask.shape).masked_fill(~mask, low)
    torch.testing.assert_close(ops.prefill_attention(q, k, v, mask, SCALE), expected)


def test_a_row_of_lowest_values_alone_weighs_all_keys_alike(kernels: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16) for length in (70, 90, 90))
    mask = torch.zeros(70, 90).masked_fill(~seen_by("causal", 70, 90), LOWEST)
    mask[3] = LOWEST
    y, expected = (f(q, k, v, mask, SCALE) for f in (ops.prefill_attention, prefill_attention.reference))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(y[0, :, 3], v[0].mean(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_spread_as_in_torch(kernels: str, place: int, value: float) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 70, 16) for _ in range(3)]
    tensors[place].view(-1)[3] = value  # of the first query, or the first key, which every query sees
    args = (*tensors, seen_by("causal", 70, 70), SCALE)
    y, expected = ops.prefill_attention(*args), prefill_attention.reference(*args)
    torch.testing.assert_close(y, expected, equal_nan=True)
