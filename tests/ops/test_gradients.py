"""Gradients: of dense ops eager's own, of gated ops those of the masked formula, with the native kernels in place."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.cpu import build

ops = torch.ops.srr
K, NEURONS, N = 12, 20, 7
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _native() -> None:
    torch.manual_seed(0)
    build.ensure_built()


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_linears_that_share_an_input(dtype: torch.dtype, rows: int) -> None:
    x, w, v, bias = (
        leaf(rows, K, dtype=dtype),
        leaf(N, K, dtype=dtype),
        leaf(NEURONS, K, dtype=dtype),
        leaf(N, dtype=dtype),
    )
    leaves = [x, w, v, bias]
    ours = gradients(torch.cat(ops.dense_linear(x, [w, v], [bias, None]), -1), leaves)
    eager = gradients(torch.cat([F.linear(x, w, bias), F.linear(x, v)], -1), leaves)
    torch.testing.assert_close(ours, eager, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_mlp(dtype: torch.dtype, activation: str) -> None:
    acts = {
        "silu": F.silu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
        "relu2": lambda t: F.relu(t).square(),
    }
    leaves = [
        leaf(*s, dtype=dtype)
        for s in ((2, K), (NEURONS, K), (NEURONS,), (NEURONS, K), (NEURONS,), (N, NEURONS), (N,))
    ]
    x, gate, gate_bias, up, up_bias, down, bias = leaves
    ours = gradients(ops.dense_mlp(*leaves, activation), leaves)
    hidden = acts[activation](F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)
    eager = gradients(F.linear(hidden, down, bias), leaves)
    # relu2's derivative is rounded at other places than autograd's.
    torch.testing.assert_close(ours, eager, **({} if activation == "relu2" else {"rtol": 0, "atol": 0}))


def test_channels_that_are_dropped_get_no_gradient() -> None:
    x, w, norm = leaf(3, K), leaf(N, K), torch.rand(K)
    counters = torch.zeros(3, dtype=torch.int64)
    y = ops.channel_linear(x, [w], [None], norm, torch.tensor([0.4, 0.0]), counters)
    keep = (x.detach().abs() * norm > 0.4).any(0)
    assert 0 < keep.sum() < K
    torch.testing.assert_close(gradients(y, [x, w]), gradients(F.linear(x * keep, w), [x, w]))
    assert counters.tolist() == [3 * K, 3 * int(keep.sum()), 0]


def test_neurons_that_are_dropped_get_no_gradient() -> None:
    x, gate, up, down = leaf(1, K), leaf(NEURONS, K), leaf(NEURONS, K), leaf(N, NEURONS)
    ones, counters = torch.ones(NEURONS), torch.zeros(3, 3, dtype=torch.int64)
    gates = torch.tensor([[-1.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
    y = ops.neuron_mlp(
        x, gate, None, up, None, down, None, "silu", torch.ones(K), ones, ones, gates, counters
    )
    acted = F.silu(F.linear(x, gate))
    hidden = acted * F.linear(x, up)
    keep = ((acted.abs() > 0.1) & (hidden.abs() > 0.2)).detach()
    assert 0 < keep.sum() < NEURONS
    leaves = [x, gate, up, down]
    torch.testing.assert_close(gradients(y, leaves), gradients(F.linear(hidden * keep, down), leaves))


@pytest.mark.parametrize("whole_up", [False, True])
def test_channels_that_the_gate_drops_get_a_gradient_through_up_alone(whole_up: bool) -> None:
    x, gate, up, down = leaf(1, K), leaf(NEURONS, K), leaf(NEURONS, K), leaf(N, NEURONS)
    ones, counters = torch.ones(NEURONS), torch.zeros(3, 3, dtype=torch.int64)
    gates = torch.tensor([[0.4, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    norms = (torch.ones(K), ones, ones)
    y = ops.neuron_mlp(x, gate, None, up, None, down, None, "silu", *norms, gates, counters, None, whole_up)
    keep = (x.abs() > 0.4).detach()
    assert 0 < keep.sum() < K
    hidden = F.silu(F.linear(x * keep, gate)) * F.linear(x if whole_up else x * keep, up)
    leaves = [x, gate, up, down]
    torch.testing.assert_close(gradients(y, leaves), gradients(F.linear(hidden, down), leaves))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    q, k, v = leaf(2, 6, 3, 8), leaf(2, 2, 9, 8), leaf(2, 2, 9, 8)
    mask = None if causal else leaf(2, 1, 3, 9)
    leaves = [q, k, v] + ([] if mask is None else [mask])
    ours = gradients(ops.decode_attention(q, k, v, mask, 0.3, causal), leaves)
    eager = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, gradients(eager, leaves))


def test_prefill_attention() -> None:
    leaves = [leaf(2, 6, 10, 8), leaf(2, 2, 12, 8), leaf(2, 2, 12, 8), leaf(2, 1, 10, 12)]
    ours = gradients(ops.prefill_attention(*leaves, 0.3), leaves)
    eager = F.scaled_dot_product_attention(*leaves, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, gradients(eager, leaves))


def test_no_gradient_is_recorded_where_none_is_wanted() -> None:
    w = leaf(N, K)
    with torch.no_grad():
        (y,) = ops.dense_linear(torch.randn(1, K), [w], [None])
    assert not y.requires_grad
    (y,) = ops.dense_linear(torch.randn(1, K), [w.detach()], [None])
    assert not y.requires_grad
