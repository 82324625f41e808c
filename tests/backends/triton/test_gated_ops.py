"""The gated ops by kernels, under Triton's interpreter, against the same ops' references."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.ops import channel_linear, neuron_mlp, vocab_head  # noqa: F401
from srrc.ops import channel_linear as channel_truth
from srrc.ops import neuron_mlp as neuron_truth
from srrc.ops import vocab_head as vocab_truth
from srrc.ops.coarse_copy import coarse_copy

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter's sigmoid

ROWS = st.integers(1, 8)
GUARDS = st.sampled_from((0.0, 0.5, 1.0))


def by_input(outputs: int, inputs: int) -> Tensor:
    return torch.randn(inputs, outputs).t()


def between(score: Tensor, fraction: float) -> float:
    """A threshold that drops a fraction of scores [B, K], halfway between two of them: rounding decides nothing."""
    if fraction == 0:
        return -1.0
    ordered = score.flatten().sort().values
    least = min(round(fraction * len(ordered)), len(ordered) - 1)
    return float(ordered[max(0, least - 1) : least + 1].mean())


@settings(max_examples=25)
@given(
    rows=ROWS,
    inputs=st.integers(1, 90),
    outputs=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    fraction=st.sampled_from((0.0, 0.4, 0.9)),
    guard=GUARDS,
    biased=st.tuples(*[st.booleans()] * 4),
    by_row=st.none() | st.integers(0, 3),
    emphasised=st.booleans(),
    seed=st.integers(0, 99),
)
def test_channel_linear(
    rows: int,
    inputs: int,
    outputs: list[int],
    fraction: float,
    guard: float,
    biased: tuple[bool, ...],
    by_row: int | None,
    emphasised: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, norm = torch.randn(rows, 1, inputs), torch.rand(inputs) + 0.1
    probe = torch.randn(inputs + 1) / inputs**0.5 if emphasised else None
    score = x.abs().view(rows, inputs) * norm
    whole = score if probe is None else score * channel_linear.factors(x.view(rows, inputs), probe)[:, None]
    gate = torch.tensor([between(whole, fraction), guard])
    weights = [by_input(count, inputs) for count in outputs]
    weights = [each.contiguous() if i == by_row else each for i, each in enumerate(weights)]
    biases = [torch.randn(count) if has else None for count, has in zip(outputs, biased, strict=False)]
    counters, told = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    found = torch.ops.srr_triton.channel_linear(x, weights, biases, norm, gate, counters, probe)
    truth = channel_truth.reference(x, weights, biases, norm, gate, told, probe)
    assert found.shape == truth.shape
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    assert counters.tolist() == told.tolist()


def mlp(
    inputs: int, neurons: int, outputs: int, *, gated: bool, whole_up: bool, bias: bool
) -> dict[str, Any]:
    up = torch.randn(neurons, inputs) if whole_up else by_input(neurons, inputs)
    return {
        "gate_weight": by_input(neurons, inputs) if gated else None,
        "gate_bias": torch.randn(neurons) if gated and bias else None,
        "up_weight": up,
        "up_bias": torch.randn(neurons) if bias else None,
        "down_weight": by_input(outputs, neurons),
        "down_bias": torch.randn(outputs) if bias else None,
    }


@settings(max_examples=50)
@given(
    rows=ROWS,
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 50)),
    kind=st.sampled_from(("plain", "gated", "whole_up")),
    activation=st.sampled_from(("silu", "gelu_tanh", "relu", "quick_gelu", "tanh")),
    thresholds=st.tuples(*[st.sampled_from((-1.0, 0.05, 0.4))] * 3),
    guards=st.tuples(GUARDS, GUARDS, GUARDS),
    emphasised=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_neuron_mlp(
    rows: int,
    sizes: tuple[int, int, int],
    kind: str,
    activation: str,
    thresholds: tuple[float, ...],
    guards: tuple[float, ...],
    emphasised: bool,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    inputs, neurons, outputs = sizes
    x = torch.randn(1, rows, inputs)
    whole_up = kind == "whole_up"
    weights = mlp(inputs, neurons, outputs, gated=kind != "plain", whole_up=whole_up, bias=bias)
    norms = [torch.rand(size) + 0.1 for size in (inputs, neurons, neurons)]
    gates = torch.tensor([*zip(thresholds, guards, strict=True)])
    if kind == "gated":  # the op's contract
        gates[1] = torch.tensor([-1.0, 0.0])
    probes = torch.randn(3, inputs + 1) / inputs**0.5 if emphasised else None
    counters, told = torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64)
    rest = (activation, *norms, gates)
    found = torch.ops.srr_triton.neuron_mlp(x, *weights.values(), *rest, counters, probes, whole_up)
    truth = neuron_truth.reference(x, *weights.values(), *rest, told, probes, whole_up)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-3)
    if kind == "gated":
        told[1] = 0
    assert counters.tolist() == told.tolist()


@settings(max_examples=30)
@given(
    rows=ROWS,
    width=st.integers(2, 40),
    vocabulary=st.integers(2, 150),
    fraction=st.sampled_from((0.0, 0.3, 0.8)),
    guard=st.sampled_from((0.0, 0.4, 1.1)),
    exact=st.integers(0, 20),
    bias=st.booleans(),
    multiple=st.sampled_from((1, 16)),
    seed=st.integers(0, 99),
)
def test_vocab_head(
    rows: int,
    width: int,
    vocabulary: int,
    fraction: float,
    guard: float,
    exact: int,
    bias: bool,
    multiple: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, 1, width), torch.randn(vocabulary, width)
    added = torch.randn(vocabulary) if bias else None
    rotation = torch.linalg.qr(torch.randn(width, width)).Q
    mean = torch.randn(width)
    copy = coarse_copy(weight, added, rotation.t().contiguous(), mean, multiple=multiple)
    assert len(copy.coarse) % multiple == 0
    y = vocab_truth.rotate(x.view(rows, width), rotation, mean)
    gate = torch.tensor([between(y.abs() * copy.norm, fraction), guard])
    counters, told = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    rest = (rotation, mean, copy.coarse, copy.scale, copy.bias, copy.norm, gate)
    found = torch.ops.srr_triton.vocab_head(x, weight, added, *rest, counters, exact)
    truth = vocab_truth.reference(x, weight, added, *rest, told, exact)
    assert counters.tolist() == told.tolist()
    # Where two coarse logits are as good as equal, another may be among the best.
    exactly = torch.nn.functional.linear(x, weight, added)
    close = torch.isclose(found, truth, rtol=1e-3, atol=1e-3)
    assert (close | torch.isclose(found, exactly, rtol=1e-3, atol=1e-3)).all()
    assert close.float().mean() > 0.97


@pytest.mark.parametrize("rows", [1, 3])
def test_what_pads_a_coarse_copy_is_no_candidate(rows: int) -> None:
    """Not even where it is larger than every token; nor does it make a row odd."""
    x, weight = torch.randn(rows, 16), torch.randn(50, 16)
    copy = coarse_copy(weight, None, torch.eye(16), torch.zeros(16), multiple=16)
    bias = copy.bias.clone()
    bias[50:62], bias[62:] = 1e6, float("nan")
    gate = torch.tensor([between(x.abs() * copy.norm, 0.5), 0.0])
    found, told = [], []
    for op, tokens in (("srr_triton", 64), ("srr", 64), ("srr", 50)):
        counters = torch.zeros(4, dtype=torch.int64)
        rest = (
            torch.eye(16),
            torch.zeros(16),
            copy.coarse[:tokens],
            copy.scale,
            bias[:tokens],
            copy.norm,
            gate,
        )
        found.append(getattr(torch.ops, op).vocab_head(x, weight, None, *rest, counters, 4))
        told.append(counters.tolist())
    by_kernels, padded, truth = found
    assert truth.shape == (rows, 50)
    torch.testing.assert_close(padded, truth)
    torch.testing.assert_close(by_kernels, truth, rtol=1e-3, atol=1e-3)
    assert told[0] == told[1] == told[2]
    assert told[0][2:] == [0, rows]
    exact = torch.isclose(by_kernels, x @ weight.t(), rtol=1e-5, atol=1e-5).sum(-1)
    assert (exact >= 4).all()


def test_a_head_whose_coarse_logits_are_nan_is_exact() -> None:
    x, weight = torch.randn(2, 16), torch.randn(50, 16)
    copy = coarse_copy(weight, None, torch.eye(16), torch.zeros(16))
    broken = copy.bias.clone()
    broken[3] = float("nan")
    counters = torch.zeros(4, dtype=torch.int64)
    gate = torch.tensor([between(x.abs() * copy.norm, 0.5), 0.0])
    rest = (torch.eye(16), torch.zeros(16), copy.coarse, copy.scale, broken, copy.norm, gate, counters, 4)
    found = torch.ops.srr_triton.vocab_head(x, weight, None, *rest)
    torch.testing.assert_close(found, x @ weight.t(), rtol=1e-4, atol=1e-4)
    assert counters.tolist() == [32, 32, 2, 0]
