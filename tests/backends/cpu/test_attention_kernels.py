"""srr::decode_attention: the native kernel against torch's scaled_dot_product_attention."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.ops import decode_attention

ops = torch.ops.srr
SCALE = 0.2


@dataclass(frozen=True)
class Attention:
    """Arguments of the op."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what Hypothesis prints
        tensors = [t for t in self.args() if isinstance(t, Tensor)]
        others = [t for t in self.args() if not isinstance(t, Tensor)]
        printer.text(f"{[(t.dtype, tuple(t.shape), t.stride()) for t in tensors]} {others}")

    def args(self, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        def cast(t: Tensor | None) -> Tensor | None:
            return t if t is None or dtype is None or t.dtype == torch.bool else t.to(dtype)

        return cast(self.q), cast(self.k), cast(self.v), cast(self.mask), SCALE, self.causal


@st.composite
def attentions(draw: Any) -> Attention:
    torch.manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    batch, kv_heads, group = (
        draw(st.sampled_from((1, 2))),
        draw(st.sampled_from((1, 2, 3))),
        draw(st.sampled_from((1, 2, 3, 9))),
    )
    queries, keys = (
        draw(st.sampled_from((1, 1, 2, 5, 8, 9))),
        draw(st.sampled_from((1, 5, 16, 63, 64, 100, 300))),
    )
    depth = draw(st.sampled_from((8, 16, 33, 64)))
    width = draw(st.sampled_from((depth, 16, 5)))
    heads = kv_heads * group

    def tensor(count: int, length: int, size: int) -> Tensor:
        """[batch, count, length, size] as [B, H, L, D], as a view of [B, L, H, D], or as a part of a cache."""
        shape = draw(st.sampled_from(("heads first", "heads inside", "cache", "depth outside")))
        if shape == "heads inside":
            return torch.randn(batch, length, count, size).to(dtype).transpose(1, 2)
        if shape == "cache":
            return torch.randn(batch, count, length + 7, size).to(dtype)[:, :, :length]
        if shape == "depth outside":
            return torch.randn(batch, count, size, length).to(dtype).transpose(2, 3)
        return torch.randn(batch, count, length, size).to(dtype)

    kind = draw(st.sampled_from(("none", "bool", "float", "-inf", "lowest", "causal", "prefix")))
    shape = (
        draw(st.sampled_from((1, batch))),
        draw(st.sampled_from((1, heads))),
        draw(st.sampled_from((1, queries))),
        keys,
    )
    mask: Tensor | None = None
    hidden = torch.rand(shape) > draw(st.sampled_from((0.1, 0.6, 1.0)))
    if kind == "bool":
        mask = ~hidden
    elif kind == "prefix":
        mask = (torch.arange(keys) <= keys // 3).expand(shape)
    elif kind == "float":
        mask = torch.randn(shape).to(dtype)
    elif kind in {"-inf", "lowest"}:
        low = -math.inf if kind == "-inf" else torch.finfo(dtype).min
        mask = torch.zeros(shape).to(dtype).masked_fill(hidden, low)
    if mask is not None and draw(st.booleans()):
        mask = mask.expand(batch, heads, queries, keys)
    q = tensor(heads, queries, depth)
    return Attention(q, tensor(kv_heads, keys, depth), tensor(kv_heads, keys, width), mask, kind == "causal")


@settings(max_examples=100, deadline=None)
@given(case=attentions())
def test_equals_torch(kernels: str, assert_as_good: Any, case: Attention) -> None:
    y = ops.decode_attention(*case.args())
    assert y.is_contiguous()
    exact = decode_attention.reference(*case.args(torch.float64))
    assert_as_good(y, decode_attention.reference(*case.args()), exact, scale=case.v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hide", ["bool", "-inf"])
def test_hidden_keys_are_not_read(kernels: str, dtype: torch.dtype, hide: str) -> None:
    q, k, v = (torch.randn(1, 2, length, 16).to(dtype) for length in (1, 40, 40))
    seen = torch.rand(40) > 0.5
    k[:, :, ~seen], v[:, :, ~seen] = math.nan, math.nan
    mask = seen.view(1, 1, 1, 40)
    if hide == "-inf":
        mask = torch.zeros(1, 1, 1, 40, dtype=dtype).masked_fill(~mask, -math.inf)
    visible = (q.float(), k[:, :, seen].float(), v[:, :, seen].float(), None, SCALE, False)
    expected = decode_attention.reference(*visible).to(dtype)
    torch.testing.assert_close(ops.decode_attention(q, k, v, mask, SCALE, False), expected)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
def test_a_query_that_sees_nothing_gets_what_torch_gives(kernels: str, lowest: float) -> None:
    q, k, v = (torch.randn(1, 2, length, 16) for length in (2, 40, 40))
    mask = torch.zeros(1, 1, 2, 40)
    mask[..., 0, :] = lowest
    mask[..., 1, 20:] = lowest
    args = (q, k, v, mask, SCALE, False)
    torch.testing.assert_close(ops.decode_attention(*args), decode_attention.reference(*args))


@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_spread_as_in_torch(kernels: str, place: str, value: float) -> None:
    tensors = {"q": torch.randn(1, 2, 1, 16), "k": torch.randn(1, 2, 40, 16), "v": torch.randn(1, 2, 40, 16)}
    tensors[place].view(-1)[3] = value
    args = (*tensors.values(), None, SCALE, False)
    torch.testing.assert_close(ops.decode_attention(*args), decode_attention.reference(*args), equal_nan=True)


def test_large_scores_do_not_overflow(kernels: str) -> None:
    q, k, v = torch.full((1, 1, 1, 16), 1e3), torch.randn(1, 1, 40, 16) * 1e3, torch.randn(1, 1, 40, 16)
    args = (q, k, v, None, 1.0, False)
    torch.testing.assert_close(ops.decode_attention(*args), decode_attention.reference(*args))


def test_a_mask_with_is_causal_is_left_to_torch(kernels: str) -> None:
    q = torch.randn(1, 1, 2, 8)
    args = (q, q, q, torch.randn(2, 2), SCALE, True)
    try:
        expected = decode_attention.reference(*args)
    except RuntimeError:  # from 2.14 on
        with pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal"):
            ops.decode_attention(*args)
    else:
        torch.testing.assert_close(ops.decode_attention(*args), expected)


def test_threads_share_the_keys(kernels: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 9, 1, 64), torch.randn(1, 3, 2000, 64), torch.randn(1, 3, 2000, 64)
    mask = torch.zeros(1, 1, 1, 2000).masked_fill(torch.rand(2000) > 0.7, -math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        y = ops.decode_attention(q, k, v, mask, SCALE, False)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(y, decode_attention.reference(q, k, v, mask, SCALE, False))
