"""srr::dense_mlp and srr::neuron_mlp: the native kernels against the references."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.ops import dense_mlp, neuron_mlp
from srrc.ops.activation import ACTIVATIONS

ops = torch.ops.srr
TOLERANCES = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def sixteenths(*shape: int) -> Tensor:
    """Multiples of 1/16 in -1/2..1/2: sums of products are exact in float32, so gate and up have no rounding."""
    return torch.randint(-8, 9, shape).float() / 16


@dataclass(frozen=True)
class Mlp:
    """The arguments that both ops share, x first and the activation's name last."""

    args: tuple[Any, ...]
    neurons: int

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what Hypothesis prints
        tensors = [t for t in self.args if isinstance(t, Tensor)]
        others = [t for t in self.args if not isinstance(t, Tensor)]
        printer.text(f"{[(t.dtype, tuple(t.shape), t.stride()) for t in tensors]} {others}")

    @property
    def x(self) -> Tensor:
        x = self.args[0]
        assert isinstance(x, Tensor)
        return x


@st.composite
def mlps(draw: Any) -> Mlp:
    torch.manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    rows = draw(st.sampled_from((1, 1, 2, 3, 5, 8, 9, 12)))
    k, neurons = draw(st.sampled_from((5, 16, 33, 64, 100))), draw(st.sampled_from((1, 7, 32, 64, 65, 130)))
    n = draw(st.sampled_from((3, 16, 64, 65)))

    def weight(outputs: int, inputs: int) -> Tensor:
        w = sixteenths(outputs, inputs).to(dtype)
        return w.t().contiguous().t() if draw(st.booleans()) else w

    def bias(width: int) -> Tensor | None:
        return sixteenths(width).to(dtype) if draw(st.booleans()) else None

    gate = weight(neurons, k) if draw(st.booleans()) else None
    gate_bias = bias(neurons) if gate is not None else None
    weights = (gate, gate_bias, weight(neurons, k), bias(neurons), weight(n, neurons), bias(n))
    return Mlp((sixteenths(rows, k).to(dtype), *weights, draw(st.sampled_from(list(ACTIVATIONS)))), neurons)


@settings(max_examples=70, deadline=None)
@given(case=mlps())
def test_dense_equals_the_reference(kernels: str, case: Mlp) -> None:
    y = ops.dense_mlp(*case.args)
    assert y.is_contiguous()
    torch.testing.assert_close(y, dense_mlp.reference(*case.args), **TOLERANCES[case.x.dtype])


thresholds = st.tuples(
    st.sampled_from((-1.0, -1.0, 0.0, 0.0317, 0.101, 1e9)), st.sampled_from((0.0, 0.0, 0.4, 1.0))
)


@settings(max_examples=100, deadline=None)
@given(
    case=mlps(),
    records=st.tuples(thresholds, thresholds, thresholds),
    emphasis=st.sampled_from((None, 0.3, 3.0)),
    whole_up=st.booleans(),
)
def test_gated_equals_the_reference(
    kernels: str,
    case: Mlp,
    records: tuple[tuple[float, float], ...],
    emphasis: float | None,
    whole_up: bool,
) -> None:
    inputs = case.x.shape[1]
    # Norms that are no multiples of anything: no score of these inputs falls on a threshold.
    norms = [torch.rand(size) + 0.5 for size in (inputs, case.neurons, case.neurons)]
    counted, expected_counts = (torch.zeros(3, 3, dtype=torch.int64) for _ in range(2))
    probes = None if emphasis is None else emphasis * torch.randn(3, inputs + 1)
    y = ops.neuron_mlp(*case.args, *norms, torch.tensor(records), counted, probes, whole_up)
    gates = torch.tensor(records)
    expected = neuron_mlp.reference(*case.args, *norms, gates, expected_counts, probes, whole_up)
    assert counted.tolist() == expected_counts.tolist()
    torch.testing.assert_close(y, expected, **TOLERANCES[case.x.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_are_as_good_as_eager(
    kernels: str, assert_as_good: Any, dtype: torch.dtype, activation: str
) -> None:
    # An identity before and after leaves the activation alone; 97 values are no whole number of vectors.
    x = torch.cat(
        (torch.linspace(-12, 12, 89), torch.tensor([-1e4, -90.0, -1e-6, 0.0, 1e-6, 0.3, 90.0, 1e4]))
    )
    one = torch.eye(97).to(dtype)
    act = ACTIVATIONS[activation].forward
    x = x.to(dtype).view(1, 97)
    y = ops.dense_mlp(x, None, None, one, None, one, None, activation)
    exact = act(x.double())
    small = exact.abs() < 16
    assert_as_good(y[small], act(x)[small], exact[small])
    torch.testing.assert_close(y[~small], act(x)[~small])


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"])
def test_nan_and_infinity_go_through_as_in_eager(kernels: str, rows: int, activation: str) -> None:
    one = torch.eye(20)
    x = torch.ones(rows, 20)
    for value in (math.nan, math.inf, -math.inf):
        x[0, 3] = value
        args = (None, None, one[3:4], None, torch.ones(2, 1), None, activation)
        # Row by row: with AVX-512 torch's GELU of an infinity beside other values is NaN, and alone it is infinite.
        expected = torch.cat([dense_mlp.reference(row, *args) for row in x.split(1)])
        torch.testing.assert_close(ops.dense_mlp(x, *args), expected, equal_nan=True)


def test_neurons_that_a_relu_zeroed_are_not_read(kernels: str) -> None:
    up = torch.cat((torch.eye(8), -torch.eye(8)))
    down = torch.full((16, 3), 2.0)
    down[8:] = math.nan
    y = ops.dense_mlp(torch.ones(1, 8), None, None, up, None, down.t(), None, "relu")
    assert y.tolist() == [[16.0] * 3]


def test_skipped_rows_of_up_and_down_are_not_read(kernels: str) -> None:
    gate, up, down = torch.zeros(4, 8), torch.ones(4, 8), torch.ones(4, 3)
    gate[0] = 1.0
    up[1:], down[1:] = math.nan, math.nan
    gates, counted = (
        torch.tensor([[-1.0, 0.0], [0.1, 0.0], [-1.0, 0.0]]),
        torch.zeros(3, 3, dtype=torch.int64),
    )
    norms = (torch.ones(8), torch.ones(4), torch.ones(4))
    y = ops.neuron_mlp(torch.ones(1, 8), gate, None, up, None, down.t(), None, "relu", *norms, gates, counted)
    assert y.tolist() == [[64.0] * 3]
    assert counted.tolist() == [[8, 8, 0], [4, 1, 0], [4, 1, 0]]


def test_rounding_is_no_worse_than_eager(kernels: str, assert_as_good: Any) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 4, 16):
            shapes = ((rows, 576), (1536, 576), (1536, 576), (576, 1536))
            x, gate, up, down = (
                torch.randn(s).mul(s[1] ** -0.5 if s[0] > 16 else 1).to(dtype) for s in shapes
            )
            args = (gate, None, up, None, down, None)
            exact = dense_mlp.reference(x.double(), *(a if a is None else a.double() for a in args), "silu")
            y = ops.dense_mlp(x, *args, "silu")
            assert_as_good(y, dense_mlp.reference(x, *args, "silu"), exact)


def test_an_unknown_activation_raises(kernels: str) -> None:
    with pytest.raises(ValueError, match="swish"):
        ops.dense_mlp(torch.ones(1, 4), None, None, torch.eye(4), None, torch.eye(4), None, "swish")
