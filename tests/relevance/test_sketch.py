import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srrc.relevance.sketch import Sketch

SCORES = hnp.arrays("float32", st.integers(1, 300), elements=st.floats(0, 2.0**100, width=32))


@given(SCORES)
def test_quantiles_are_within_a_bucket(values: object) -> None:
    scores = torch.as_tensor(values)
    sketch = Sketch()
    sketch.add(scores)
    table, ordered = sketch.quantiles(33), scores.sort().values
    assert (table.diff() >= 0).all()
    for index, value in enumerate(table.tolist()):
        # The order statistics on either side of the wanted place, a bucket's width (1/128) either way.
        place = index / 32 * len(ordered)
        low = ordered[max(0, math.ceil(place) - 2)].item()
        high = ordered[min(len(ordered) - 1, math.floor(place) + 1)].item()
        assert low * (1 - 1 / 100) - 1e-37 <= value <= high * (1 + 1 / 100) + 1e-37


def test_the_wanted_fraction_falls_under_a_threshold() -> None:
    torch.manual_seed(0)
    scores = torch.randn(200_000).abs()
    sketch = Sketch()
    for part in scores.split(1000):
        sketch.add(part)
    table = sketch.quantiles()
    for fraction in (0.1, 0.25, 0.5, 0.9):
        dropped = (scores <= table[round(fraction * 1024)]).float().mean().item()
        assert dropped == pytest.approx(fraction, abs=0.003)


def test_zeros_have_the_threshold_zero() -> None:
    sketch = Sketch()
    sketch.add(torch.cat((torch.zeros(60), -torch.zeros(10), torch.ones(30))))
    table = sketch.quantiles(11)
    assert table[:7].tolist() == [0.0] * 7
    assert table[8:].tolist() == pytest.approx([1.0] * 3, rel=0.01)


def test_what_is_not_finite_is_above_all_else() -> None:
    sketch = Sketch()
    sketch.add(torch.tensor([1.0, 2.0, float("nan"), float("inf")]))
    table = sketch.quantiles(5)
    assert table[1].item() == pytest.approx(1.0, rel=0.01)
    assert table[3:].min() > 1e38
    assert table.isfinite().all()


def test_log_mean() -> None:
    sketch = Sketch()
    sketch.add(torch.tensor([0.0, math.e, math.e**3]))
    assert sketch.log_mean() == pytest.approx(2.0, abs=0.01)
    assert Sketch().log_mean() == 0.0


def test_nothing_has_no_quantiles() -> None:
    with pytest.raises(ValueError, match="no scores"):
        Sketch().quantiles()
