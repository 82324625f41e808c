"""srr::dense_linear and srr::channel_linear: the native kernels against the references.

Small whole numbers make every sum exact in float32, whatever its order: results must then agree to the bit. How
well sums are rounded is judged apart, against float64.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from srrc.ops import channel_linear, dense_linear

ops = torch.ops.srr
LAYOUTS = ("row", "input", "row_padded", "input_padded")
dtypes = st.sampled_from((torch.float32, torch.bfloat16))
rows_ = st.sampled_from((1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13))
inputs_ = st.sampled_from((1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 257, 600))
outputs_ = st.sampled_from((1, 3, 15, 16, 17, 31, 32, 33, 63, 65, 129, 200))


def whole(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape).float()


def laid_out(weight: Tensor, layout: str) -> Tensor:
    """The same weight [N, K], stored by rows or by input channels, alone or as a part of something wider."""
    if layout.endswith("padded"):
        base = weight if layout == "row_padded" else weight.t()
        wide = torch.full((base.shape[0], base.shape[1] + 5), math.nan, dtype=weight.dtype)
        wide[:, : base.shape[1]] = base
        part = wide[:, : base.shape[1]]
        return part if layout == "row_padded" else part.t()
    return weight if layout == "row" else weight.t().contiguous().t()


@dataclass(frozen=True)
class Linears:
    """Arguments of an op: x [rows, K], weights and biases."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what Hypothesis prints
        tensors = [t for t in (self.x, *self.weights, *self.biases) if isinstance(t, Tensor)]
        others = [t for t in (self.x, *self.weights, *self.biases) if not isinstance(t, Tensor)]
        printer.text(f"{[(t.dtype, tuple(t.shape), t.stride()) for t in tensors]} {others}")


@st.composite
def linears(draw: Any) -> Linears:
    torch.manual_seed(draw(st.integers(0, 99)))
    dtype, rows, k = draw(dtypes), draw(rows_), draw(inputs_)
    widths = draw(st.lists(outputs_, min_size=1, max_size=3))
    weights = [laid_out(whole(n, k).to(dtype), draw(st.sampled_from(LAYOUTS))) for n in widths]
    biases = [whole(n).to(dtype) if draw(st.booleans()) else None for n in widths]
    x = whole(rows, k).to(dtype)
    if draw(st.booleans()):
        x = torch.stack((x, x), -1)[..., 0]  # not contiguous
    return Linears(x, weights, biases)


@settings(max_examples=70, deadline=None)
@given(case=linears())
def test_dense_equals_the_reference(kernels: str, case: Linears) -> None:
    ours = ops.dense_linear(case.x, case.weights, case.biases)
    for y, expected in zip(ours, dense_linear.reference(case.x, case.weights, case.biases), strict=True):
        assert y.is_contiguous()
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@settings(max_examples=70, deadline=None)
@given(
    case=linears(),
    threshold=st.sampled_from((-1.0, 0.0, 0.7, 1.5, 3.0, 1e9)),
    min_kept=st.sampled_from((0.0, 0.0, 0.4, 1.0)),
    odd=st.sampled_from((None, None, math.nan, math.inf, -math.inf)),
    emphasis=st.sampled_from((None, 0.0, 0.3, 3.0)),
)
def test_channels_equal_the_reference(
    kernels: str, case: Linears, threshold: float, min_kept: float, odd: float | None, emphasis: float | None
) -> None:
    x = case.x.clone()
    if odd is not None:
        x[0, x.shape[1] // 2] = odd
    norm, gate = torch.rand(x.shape[1]), torch.tensor([threshold, min_kept])
    counted, expected_counts = (torch.tensor([10, 20, 30]) for _ in range(2))
    probe = None if emphasis is None else emphasis * torch.randn(x.shape[1] + 1)
    y = ops.channel_linear(x, case.weights, case.biases, norm, gate, counted, probe)
    expected = channel_linear.reference(x, case.weights, case.biases, norm, gate, expected_counts, probe)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert counted.tolist() == expected_counts.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["row", "input"])
def test_neighbours_in_memory_are_read_as_one(kernels: str, dtype: torch.dtype, layout: str) -> None:
    storage = whole(96, 64) if layout == "row" else whole(64, 96)
    whole_weight = (storage if layout == "row" else storage.t()).to(dtype)
    weights = list(whole_weight.split([32, 48, 16]))
    x, biases = whole(2, 64).to(dtype), [whole(32).to(dtype), None, whole(16).to(dtype)]
    for y, expected in zip(
        ops.dense_linear(x, weights, biases), dense_linear.reference(x, weights, biases), strict=True
    ):
        assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["row", "input"])
@pytest.mark.parametrize(("rows", "k"), [(1, 576), (1, 4100), (4, 1536), (8, 576), (16, 1536)])
def test_rounding_is_no_worse_than_eager(
    kernels: str, assert_as_good: Any, dtype: torch.dtype, layout: str, rows: int, k: int
) -> None:
    torch.manual_seed(k + rows)
    x, w, bias = torch.randn(rows, k).to(dtype), torch.randn(192, k).to(dtype), torch.randn(192).to(dtype)
    (y,) = ops.dense_linear(x, [laid_out(w, layout)], [bias])
    assert_as_good(y, F.linear(x, w, bias), F.linear(x.double(), w.double(), bias.double()))


def test_leading_dimensions_are_kept(kernels: str) -> None:
    x, w = whole(2, 1, 3, 16), whole(5, 16)
    (y,) = ops.dense_linear(x, [w], [None])
    assert y.shape == (2, 1, 3, 5)
    (y,) = ops.dense_linear(x[0, 0, 0], [w], [None])
    assert y.shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_no_kernel_takes_goes_to_the_reference(kernels: str, dtype: torch.dtype) -> None:
    x, w = whole(2, 16).to(dtype), whole(5, 16).to(dtype)
    (y,) = ops.dense_linear(x, [w], [None])
    assert torch.equal(y, F.linear(x, w))
    strided = whole(10, 32)[::2, ::2]
    (y,) = ops.dense_linear(whole(1, 16), [strided], [None])
    assert y.shape == (1, 5)


def test_nothing_in_nothing_out(kernels: str) -> None:
    (y,) = ops.dense_linear(torch.empty(0, 16), [whole(5, 16)], [None])
    assert y.shape == (0, 5)


@pytest.mark.parametrize("mismatch", ["width", "dtype"])
def test_arguments_that_do_not_fit_raise_as_eager_does(kernels: str, mismatch: str) -> None:
    w = whole(5, 15) if mismatch == "width" else whole(5, 16).double()
    with pytest.raises(RuntimeError):
        ops.dense_linear(whole(1, 16), [w], [None])


def test_threads_agree_with_one(kernels: str) -> None:
    x, w = whole(2, 600), whole(3000, 600)
    layouts = [w, laid_out(w, "input")]
    alone = ops.dense_linear(x, layouts, [None, None])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = ops.dense_linear(x, layouts, [None, None])
    finally:
        torch.set_num_threads(threads)
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one, many)
