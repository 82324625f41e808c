"""srr::block_gate says what its docstring says, and is registered as torch wants it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from srrc.ops import block_gate, layer_gate

H, BLOCKS = 12, 5
op = torch.ops.srr.block_gate.default


def probes(seed: int = 0) -> Tensor:
    return torch.randn(BLOCKS, H + 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_block_is_scored_as_a_branch_is(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, H, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = block_gate.score(x, probes())
    assert found.shape == (2, 7, BLOCKS)
    for block in range(BLOCKS):
        expected = layer_gate.score(x, probes()[block])
        torch.testing.assert_close(found[..., block : block + 1], expected, rtol=1e-4, atol=1e-6)


@given(rows=st.integers(1, 20), seed=st.integers(0, 100), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_block_is_kept_where_its_score_is_above(rows: int, seed: int, share: float) -> None:
    x = torch.randn(rows, H, generator=torch.Generator().manual_seed(seed))
    scores = block_gate.score(x, probes(seed))
    threshold = float(scores.flatten().quantile(share))
    counters = torch.zeros(3, dtype=torch.int64)
    keep = op(x, probes(seed), torch.tensor([threshold, 0.0]), counters)
    alone = scores > threshold
    expected = alone.any(0, keepdim=True).expand(rows, BLOCKS) if rows <= 8 else alone
    assert torch.equal(keep, expected)
    assert counters.tolist() == [rows * BLOCKS, int(expected.sum()) if rows <= 8 else rows * BLOCKS, 0]


def test_what_has_no_score_is_kept_and_a_negative_threshold_keeps_all() -> None:
    counters = torch.zeros(3, dtype=torch.int64)
    for strange in (torch.zeros(1, H), torch.full((1, H), math.nan)):
        assert op(strange, probes(), torch.tensor([1e30, 0.0]), counters).all()
    assert op(torch.randn(3, H), probes(), torch.tensor([-1.0, 0.0]), counters).all()
    assert not op(torch.randn(3, H), probes(), torch.tensor([1e30, 0.0]), counters).any()


def test_torch_accepts_it() -> None:
    args = (torch.randn(2, 3, H), probes(), torch.tensor([1.0, 0.0]), torch.zeros(3, dtype=torch.int64))
    opcheck(op, args)
