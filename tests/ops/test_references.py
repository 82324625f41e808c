"""The references say what the docstrings say, on any dtype; and the ops are registered as torch wants them."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from srrc.errors import OptionError
from srrc.ops import channel_linear, decode_attention, dense_linear, dense_mlp, neuron_mlp
from srrc.ops.activation import ACTIVATIONS, lookup

ops = torch.ops.srr
K, NEURONS, N = 12, 20, 7


def normal(*shape: int, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def counters(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dense_ops_are_eager_to_the_bit(dtype: torch.dtype) -> None:
    x, gate, up = (normal(*s, grad=False, dtype=dtype) for s in ((2, 3, K), (NEURONS, K), (NEURONS, K)))
    down, bias = normal(N, NEURONS, grad=False, dtype=dtype), normal(N, grad=False, dtype=dtype)
    (first, second) = dense_linear.reference(x, [gate, down[:, :K]], [None, bias])
    assert torch.equal(first, F.linear(x, gate))
    assert torch.equal(second, F.linear(x, down[:, :K], bias))
    gated = dense_mlp.reference(x, gate, None, up, None, down, bias, "silu")
    assert torch.equal(gated, F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down, bias))
    plain = dense_mlp.reference(x, None, None, up, None, down, bias, "relu2")
    assert torch.equal(plain, F.linear(F.relu(F.linear(x, up)).square(), down, bias))


def test_channel_linear_reads_what_its_gate_keeps() -> None:
    x, w = normal(1, K, grad=False), normal(N, K, grad=False)
    norm = torch.rand(K)
    counted = counters(3)
    y = channel_linear.reference(x, [w], [None], norm, torch.tensor([0.3, 0.0]), counted)
    keep = (x.abs() * norm > 0.3)[0]
    assert 0 < keep.sum() < K
    torch.testing.assert_close(y, x[:, keep] @ w[:, keep].t())
    assert counted.tolist() == [K, int(keep.sum()), 0]


@pytest.mark.parametrize("whole_up", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_neuron_mlp_drops_neurons_by_its_gate_and_by_its_result(rows: int, whole_up: bool) -> None:
    x, gate, up, down = (
        normal(*s, grad=False) for s in ((rows, K), (NEURONS, K), (NEURONS, K), (N, NEURONS))
    )
    norms = (torch.rand(K), torch.rand(NEURONS), torch.rand(NEURONS))
    thresholds = (0.2, 0.1, 0.2)
    counted = counters(3, 3)
    gates = torch.tensor([[t, 0.0] for t in thresholds])
    y = neuron_mlp.reference(
        x, gate, None, up, None, down, None, "silu", *norms, gates, counted, None, whole_up
    )

    def shared(keep: Tensor) -> Tensor:
        return keep.any(0, keepdim=True).expand_as(keep) if rows <= 8 else keep

    inputs = shared(x.abs() * norms[0] > thresholds[0])
    acted = F.silu((x * inputs) @ gate.t())
    neurons = shared(acted.abs() * norms[1] > thresholds[1])
    hidden = acted * ((x if whole_up else x * inputs) @ up.t()) * neurons
    kept = shared((hidden.abs() * norms[2] > thresholds[2]) & neurons)
    torch.testing.assert_close(y, (hidden * kept) @ down.t())
    executed = (
        [int(m.sum()) for m in (inputs, neurons, kept)]
        if rows <= 8
        else [rows * K, rows * NEURONS, rows * NEURONS]
    )
    assert counted.tolist() == [
        [o, e, 0] for o, e in zip((rows * K, rows * NEURONS, rows * NEURONS), executed, strict=True)
    ]


def test_without_a_gate_weight_nothing_is_counted_for_the_neuron_gate() -> None:
    counted = counters(3, 3)
    gates = torch.tensor([[-1.0, 0.0], [1e9, 0.0], [-1.0, 0.0]])
    args = (normal(1, K), None, None, normal(NEURONS, K), None, normal(N, NEURONS), None, "gelu")
    y = neuron_mlp.reference(*args, torch.rand(K), torch.rand(NEURONS), torch.rand(NEURONS), gates, counted)
    torch.testing.assert_close(y, dense_mlp.reference(*args))
    assert counted.tolist() == [[K, K, 0], [0, 0, 0], [NEURONS, NEURONS, 0]]


def test_attention_without_expanding_equals_torch() -> None:
    q, k, v = (normal(*s, grad=False) for s in ((2, 6, 3, 8), (2, 2, 9, 8), (2, 2, 9, 8)))
    ours = decode_attention.reference(q, k, v, None, 0.3, False)
    wide_k, wide_v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, wide_k, wide_v, scale=0.3))


def test_an_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'swish'.*silu"):
        lookup("swish")


def cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Arguments of every op but vocab_head, with gradients wanted everywhere they can be."""
    x, gate = normal(2, 3, K), torch.tensor([0.5, 0.1])
    mlp = (normal(NEURONS, K), None, normal(NEURONS, K), normal(NEURONS), normal(N, NEURONS), normal(N))
    gates = torch.tensor([[0.2, 0.1], [0.3, 0.1], [0.4, 0.1]])
    norms = (torch.rand(K), torch.rand(NEURONS), torch.rand(NEURONS))
    q, k = normal(2, 4, 3, 8), normal(2, 2, 9, 8)
    return {
        "dense_linear": (
            ops.dense_linear.default,
            (x, [normal(N, K), normal(NEURONS, K)], [normal(N), None]),
        ),
        "dense_mlp": (ops.dense_mlp.default, (x, *mlp, "silu")),
        "plain_mlp": (ops.dense_mlp.default, (x, None, None, *mlp[2:], "gelu_tanh")),
        "channel_linear": (
            ops.channel_linear.default,
            (x, [normal(N, K), normal(NEURONS, K)], [normal(N), None], torch.rand(K), gate, counters(3)),
        ),
        "neuron_mlp": (ops.neuron_mlp.default, (x, *mlp, "silu", *norms, gates, counters(3, 3))),
        "attention": (ops.decode_attention.default, (q, k, normal(2, 2, 9, 5), None, 0.3, False)),
        "prefill_attention": (ops.prefill_attention.default, (q, k, k, normal(2, 1, 3, 9), 0.3)),
        "masked_attention": (ops.decode_attention.default, (q, k, k, normal(2, 1, 3, 9), 0.3, False)),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_torch_finds_every_op_sound(name: str) -> None:
    op, args = cases()[name]
    opcheck(op, args)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_derivatives_of_activations(name: str) -> None:
    act = ACTIVATIONS[name]
    x = torch.linspace(-3, 3, 50, dtype=torch.float64).add(0.013).requires_grad_()
    (expected,) = torch.autograd.grad(act.forward(x).sum(), x)
    torch.testing.assert_close(act.backward(torch.ones_like(x), x), expected)


def test_importing_srrc_registers_no_ops() -> None:
    code = "import sys, srrc; assert 'srrc.ops' not in sys.modules, 'srrc imports its ops'"
    subprocess.run([sys.executable, "-c", code], check=True)
