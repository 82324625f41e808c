"""What a gate decides and counts: srrc/ops/gate.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srrc.ops.gate import MAX_ROWS, count, decide, input_score, zero_unless


def record(threshold: float, min_kept: float = 0.0) -> torch.Tensor:
    return torch.tensor([threshold, min_kept])


def kept(score: list[list[float]], threshold: float, min_kept: float = 0.0) -> list[list[bool]]:
    return decide(torch.tensor(score), record(threshold, min_kept)).keep.tolist()


def test_a_unit_is_kept_above_the_threshold_and_nan_always() -> None:
    assert kept([[0.0, 0.5, 0.6, math.nan, math.inf]], 0.5) == [[False, False, True, True, True]]


@pytest.mark.parametrize("threshold", [-1.0, -1e-30, math.nan, -math.inf])
def test_a_negative_threshold_keeps_everything(threshold: float) -> None:
    assert kept([[0.0, -5.0, 3.0]], threshold) == [[True] * 3]


def test_zero_drops_only_exact_zeros() -> None:
    assert kept([[0.0, 1e-45, 1.0]], 0.0) == [[False, True, True]]


def test_a_row_that_keeps_too_little_keeps_everything_and_is_counted() -> None:
    nine = [[1.0, 0.0, 0.0, 0.0]] + [[1.0, 1.0, 0.0, 0.0]] * 8
    decision = decide(torch.tensor(nine), record(0.5, min_kept=0.5))
    assert decision.keep.tolist() == [[True] * 4] + [[True, True, False, False]] * 8
    assert decision.failed.item() == 1


def test_few_rows_share_the_union() -> None:
    assert kept([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 0.5) == [[True, True, False]] * 2


def test_units_that_an_earlier_gate_dropped_stay_dropped_and_do_not_count_for_the_guard() -> None:
    alive = torch.tensor([[True, True, False, False]])
    decision = decide(torch.tensor([[9.0, 0.0, 9.0, 9.0]]), record(0.5, min_kept=0.5), alive)
    assert decision.keep.tolist() == [[True, False, False, False]]
    assert decision.failed.item() == 0
    failing = decide(torch.tensor([[9.0, 0.0, 9.0, 9.0]]), record(0.5, min_kept=0.6), alive)
    assert failing.keep.tolist() == [[True, True, False, False]]
    assert failing.failed.item() == 1


@given(
    rows=st.integers(1, 12), units=st.integers(1, 40), threshold=st.floats(-0.5, 1.0), seed=st.integers(0, 99)
)
def test_counters_say_what_is_computed(rows: int, units: int, threshold: float, seed: int) -> None:
    score = torch.rand(rows, units, generator=torch.Generator().manual_seed(seed))
    decision = decide(score, record(threshold, 0.3))
    counters = torch.tensor([100, 200, 300])
    count(counters, decision)
    union = int(decision.keep.any(0).sum())
    executed = rows * (union if rows <= MAX_ROWS else units)
    assert counters.tolist() == [100 + rows * units, 200 + executed, 300 + int(decision.failed)]


def test_zeroing_leaves_no_nan_of_an_infinity() -> None:
    x = torch.tensor([math.inf, math.nan, 2.0])
    keep = torch.tensor([False, False, True])
    assert zero_unless(keep, x).tolist() == [0.0, 0.0, 2.0]


def test_scores_are_float32_whatever_the_input() -> None:
    score = input_score(torch.tensor([[-3.0, 2.0]], dtype=torch.bfloat16), torch.tensor([0.1, 10.0]))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, torch.tensor([[0.3, 20.0]]))
