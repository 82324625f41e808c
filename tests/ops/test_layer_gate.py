"""srr::layer_gate says what its docstring says, and is registered as torch wants it."""

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from srrc.ops import layer_gate
from srrc.ops.gated_region import gated_region

H = 12
op = torch.ops.srr.layer_gate.default


def probe(seed: int = 0) -> Tensor:
    return torch.randn(H + 1, generator=torch.Generator().manual_seed(seed))


def by_hand(row: list[float], weights: list[float]) -> float:
    rms = math.sqrt(sum(value * value for value in row) / len(row))
    dot = sum(value * weight for value, weight in zip(row, weights[:-1], strict=True))
    return math.exp(dot / rms + weights[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_score_is_the_probe_on_the_direction_of_the_stream(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, p = (3 * torch.randn(2, 5, H)).to(dtype), probe()
    found = layer_gate.score(x, p)
    assert found.shape == (2, 5, 1)
    assert found.dtype == torch.float32
    for row, score in zip(x.reshape(-1, H).tolist(), found.flatten().tolist(), strict=True):
        assert score == pytest.approx(by_hand(row, p.tolist()), rel=1e-4)
    # Only the direction counts.
    torch.testing.assert_close(layer_gate.score(4 * x, p), found)


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 20])
def test_few_rows_share_the_union_and_many_decide_alone(rows: int) -> None:
    torch.manual_seed(rows)
    x, p = torch.randn(rows, H), probe()
    scores = layer_gate.score(x, p).flatten()
    for threshold in (-1.0, float(scores.min()), float(scores.median()), float(scores.max())):
        counters = torch.zeros(3, dtype=torch.int64)
        keep = layer_gate.reference(x, p, torch.tensor([threshold, 0.0]), counters)
        alone = (scores > threshold) | (threshold < 0)
        expected = alone.any().expand(rows) if rows <= 8 else alone
        assert keep.dtype == torch.bool
        assert torch.equal(keep, expected[:, None])
        executed = int(expected.sum()) if rows <= 8 else rows
        assert counters.tolist() == [rows, executed, 0]


def test_what_has_no_score_is_kept_and_a_guard_keeps_its_rows() -> None:
    counters = torch.zeros(3, dtype=torch.int64)
    closed = torch.tensor([1e30, 0.0])
    for strange in (torch.zeros(1, H), torch.full((1, H), math.nan), torch.full((1, H), math.inf)):
        assert layer_gate.reference(strange, probe(), closed, counters).all()
    assert not layer_gate.reference(torch.ones(1, H), probe(), closed, counters).any()
    assert counters.tolist() == [4, 3, 0]
    guarded = torch.tensor([1e30, 0.5])
    assert layer_gate.reference(torch.ones(2, H), probe(), guarded, counters).all()
    assert counters.tolist() == [6, 5, 2]


def test_it_is_registered_as_torch_wants_it() -> None:
    counters = torch.zeros(3, dtype=torch.int64)
    for rows in (2, 9):
        opcheck(op, (torch.randn(rows, H), probe(), torch.tensor([1.0, 0.0]), counters))


def test_a_decision_has_no_gradient() -> None:
    x = torch.randn(2, H, requires_grad=True)
    keep = op(x, probe(), torch.tensor([1.0, 0.0]), torch.zeros(3, dtype=torch.int64))
    assert not keep.requires_grad
    torch.where(keep | True, x, 0.0).sum().backward()
    assert torch.equal(x.grad, torch.ones(2, H))


def test_a_region_gives_the_bypass_where_it_is_left_out() -> None:
    x = torch.randn(3, H)
    keep = torch.tensor([[True], [False], [True]])
    found = gated_region(keep, lambda a, b: a + b, x, x, 2 * x)
    assert torch.equal(found, torch.where(keep, 3 * x, x))
