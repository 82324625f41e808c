"""srr::layer_gate: the native kernel against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srrc.ops import layer_gate

op = torch.ops.srr.layer_gate.default
dtypes = st.sampled_from((torch.float32, torch.bfloat16))
widths = st.sampled_from((1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 257, 576))


def counters() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.int64)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 99),
    dtype=dtypes,
    rows=st.sampled_from((1, 1, 2, 3, 8, 9)),
    width=widths,
    # Between two scores, so that the rounding of a sum decides nothing.
    place=st.sampled_from((-1.0, 0.0, 0.3, 0.5, 0.9, 1.0)),
    min_kept=st.sampled_from((0.0, 0.5, 1.0, 1.5)),
    contiguous=st.booleans(),
)
def test_it_decides_as_the_reference_does(
    kernels: str,
    seed: int,
    dtype: torch.dtype,
    rows: int,
    width: int,
    place: float,
    min_kept: float,
    contiguous: bool,
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(1, rows, width) * 10 ** torch.randn(1, rows, 1)).to(dtype)
    if not contiguous:
        x = torch.stack((x, x), -1)[..., 0]
    probe = torch.randn(width + 1) / width**0.5
    scores = layer_gate.score(x, probe).flatten().sort().values
    between = torch.cat((scores[:1] * 0.99, (scores[1:] * scores[:-1]).sqrt(), scores[-1:] * 1.01))
    at = round(place * rows)
    nearest = (scores / between[at] - 1).abs().min() if place >= 0 else 1.0
    threshold = float(between[at]) if place >= 0 and nearest > 1e-4 else place
    record, ours, theirs = torch.tensor([threshold, min_kept]), counters(), counters()
    keep = op(x, probe, record, ours)
    assert torch.equal(keep, layer_gate.reference(x, probe, record, theirs))
    assert keep.is_contiguous()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_score_is_kept(kernels: str, dtype: torch.dtype) -> None:
    probe, closed = torch.randn(33), torch.tensor([1e30, 0.0])
    for value in (0.0, float("nan"), float("inf")):
        assert op(torch.full((1, 32), value, dtype=dtype), probe, closed, counters()).all()
    assert not op(torch.ones(1, 32, dtype=dtype), probe, closed, counters()).any()


def test_other_kinds_of_arguments_go_to_the_reference(kernels: str) -> None:
    probe, record = torch.randn(9), torch.tensor([1.0, 0.0])
    for x in (torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8).half(), torch.randn(0, 8)):
        found, expected = counters(), counters()
        keep = op(x, probe, record, found)
        assert torch.equal(keep, layer_gate.reference(x, probe, record, expected))
        assert torch.equal(found, expected)
