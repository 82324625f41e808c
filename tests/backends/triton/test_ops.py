"""The operators by Triton's interpreter: each does what its kernel's reference says, and has a right schema."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from srrc.backends.triton.kernels import block_attention as attention
from srrc.backends.triton.kernels import block_mask as masks
from srrc.backends.triton.kernels import compact as lists
from srrc.backends.triton.kernels import estimator as estimates
from srrc.backends.triton.kernels import grouped_linear as experts
from srrc.backends.triton.kernels import kv_gather as caches
from srrc.backends.triton.kernels import token_rows as rows
from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.lists import reference as listed
from srrc.backends.triton.ops.block_attention import block_attention
from srrc.backends.triton.ops.block_mask import block_mask
from srrc.backends.triton.ops.compact import compact
from srrc.backends.triton.ops.estimator import estimator
from srrc.backends.triton.ops.grouped_linear import grouped_linear
from srrc.backends.triton.ops.kv_gather import kv_gather, kv_gather_into
from srrc.backends.triton.ops.token_rows import gather_rows, scatter_rows


def check(op: Any, *args: Any) -> None:
    """Fake tensors are for kernels that Triton compiles: `test_ops_in_graphs.py` has them."""
    opcheck(op, args, test_utils=("test_schema", "test_autograd_registration"))


def close(found: Tensor, true: Tensor) -> None:
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("causal", "window"), [(True, 30), (False, None)])
def test_attention_by_blocks(causal: bool, window: int | None) -> None:
    mask = torch.rand(2, 1, 3, 2) < 0.6
    q, k, v = torch.randn(2, 4, 40, 32), torch.randn(2, 2, 50, 32), torch.randn(2, 2, 50, 32)
    given = 16, 32, causal, window
    index, counts = block_mask(mask, 40, 50, *given)
    truth = masks.compact(mask, 40, 50, block=(16, 32), causal=causal, window=window)
    assert torch.equal(counts, truth.counts)
    found = block_attention(q, k, v, index, counts, *given, 0.3)
    true = attention.reference(q, k, v, mask, block=(16, 32), causal=causal, window=window, scale=0.3)
    for mine, its in zip(found, true, strict=True):
        close(mine, its)


def test_lists_of_blocks_have_a_right_schema() -> None:
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    check(block_mask, mask, 32, 32, 16, 16, False)
    q = torch.randn(1, 1, 32, 32)
    check(block_attention, q, q, q, *block_mask(mask, 32, 32, 16, 16, False), 16, 16, False)


@pytest.mark.parametrize(("capacity", "fill"), [(20, -1), (90, 7), (None, 0)])
def test_compact(capacity: int | None, fill: int) -> None:
    mask = torch.rand(3, 70) < 0.5
    found = compact(mask, capacity, fill)
    torch.testing.assert_close(found, lists.reference(mask, capacity, fill))
    check(compact, mask, capacity, fill)


@pytest.mark.parametrize("doubt", [True, False])
def test_estimator(doubt: bool) -> None:
    x, projection, decoder = torch.randn(2, 40), torch.randn(6, 40), torch.randn(150, 6)
    norm, gate = torch.rand(150), torch.tensor([3.0, 0.0])
    spread = torch.rand(150) if doubt else None
    found = Kept(*estimator(x, projection, decoder, norm, gate, spread), count=150)
    true = listed(estimates.scores(x, projection, decoder, norm, spread), gate, found.block)
    assert 0 < int(true.counts.sum()) < 150
    for mine, its in zip(*((k.units, k.counts, k.rows) for k in (found, true)), strict=True):
        assert torch.equal(mine, its)
    assert not found.arrived.any()
    check(estimator, x, projection, decoder, norm, gate, spread)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_kv_gather(dtype: torch.dtype) -> None:
    keys, values = (torch.randint(-9, 9, (2, 3, 30, 16)).to(dtype) for _ in range(2))
    index, count = caches.positions(torch.rand(2, 3, 30) < 0.5)
    found, true = ([torch.zeros_like(keys), torch.ones_like(values)] for _ in range(2))
    kv_gather_into(keys, values, index, count, *found)
    caches.reference(keys, values, index, count, (true[0], true[1]))
    torch.testing.assert_close(found, true)
    fresh = kv_gather(keys, values, index, count)
    valid = torch.arange(30) < count[..., None]
    for mine, its in zip(fresh, true, strict=True):
        torch.testing.assert_close(mine[valid], its[valid])
    check(kv_gather_into, keys, values, index, count, *found)


def test_a_cache_is_not_compacted_where_it_stands() -> None:
    keys, values = torch.zeros(2, 3, 30, 16), torch.zeros(2, 3, 30, 16)
    index, count = caches.positions(torch.ones(2, 3, 30, dtype=torch.bool))
    with pytest.raises(ValueError, match="share no memory"):
        kv_gather_into(keys, values, index, count, keys, values)
    with FakeTensorMode() as mode:  # as while it is traced
        fakes = [mode.from_tensor(x) for x in (keys, values, index, count)]
        with pytest.raises(ValueError, match="share no memory"):
            kv_gather_into(*fakes, *fakes[:2])


def test_gather_rows() -> None:
    x = torch.randn(20, 30)
    index, count = lists.compact(torch.rand(1, 20) < 0.5, fill=0)
    close(gather_rows(x, index[0], count), rows.reference_gather(x, index[0], count))
    check(gather_rows, x, index[0], count)


@pytest.mark.parametrize("add", [True, False])
def test_scatter_rows(add: bool) -> None:
    base, made = torch.randn(20, 30), torch.randn(20, 30)
    index, count = lists.compact(torch.rand(1, 20) < 0.5, fill=0)
    true = rows.reference_scatter(base, made, index[0], count, add=add)
    check(scatter_rows, base.clone(), made, index[0], count, add)
    scatter_rows(base, made, index[0], count, add)
    close(base, true)


@pytest.mark.parametrize("weighted", [True, False])
def test_grouped_linear(weighted: bool) -> None:
    x, weight = torch.randn(10, 24), torch.randn(4, 40, 24) / 5
    routing = experts.route(torch.randint(0, 5, (10, 2)), 4)
    pair_weight = torch.rand(20) if weighted else None
    given = x, weight, routing.order, routing.offsets, pair_weight
    close(grouped_linear(*given), experts.reference(*given))
    check(grouped_linear, *given)


def test_what_a_kernel_does_not_take() -> None:
    with pytest.raises(ValueError, match="bool mask"):
        compact(torch.ones(3, 4))
