"""Confidence bounds on drift."""

import pytest
import torch

from srrc.control.confidence import interval


def test_nothing_seen_is_nothing_known() -> None:
    found = interval([], 0.5)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.5)


def test_bounds_narrow_with_what_is_seen_and_keep_the_mean_inside() -> None:
    draw = torch.Generator().manual_seed(0)
    values = (torch.rand(2000, generator=draw) ** 8 * 0.3).tolist()  # mean 1/30, heavy on the right
    widths = []
    for count in (20, 200, 2000):
        found = interval(values[:count], 0.5)
        assert found.low <= 0.3 / 9 <= found.high
        widths.append(found.high - found.low)
    assert widths[2] < widths[1] / 2 < widths[0] / 2


def test_they_hold_at_every_moment_in_nearly_all_runs() -> None:
    missed = 0
    for seed in range(200):
        draw = torch.Generator().manual_seed(seed)
        values = (
            (torch.rand(64, generator=draw) < 0.1).double().tolist()
        )  # the widest distribution of mean 0.1
        missed += any(
            not interval(values[:count], 1.0).low <= 0.1 <= interval(values[:count], 1.0).high
            for count in range(1, 65, 3)
        )
    assert missed <= 10  # 5% of 200


@pytest.mark.parametrize("value", [7.0, float("inf")])
def test_what_is_above_the_ceiling_counts_as_it(value: float) -> None:
    assert interval([value] * 50, 0.5) == interval([0.5] * 50, 0.5)
