"""The kernel under Triton's interpreter against the reference, and what it lists against srr::neuron_mlp's gates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.gated_mlp import Config
from srrc.backends.triton.kernels.listed_rows import listed_rows, reference
from srrc.ops.gate import count, decide

SMALL = Config(16, 32, 1, block=32)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 70),
    neurons=st.integers(1, 100),
    threshold=st.sampled_from((-1.0, 0.4, 99.0)),
    least=st.sampled_from(((0.0, 0.0), (0.5, 0.5), (0.9, 0.3), (0.0, 1.0))),
    last=st.sampled_from((-1.0, 0.0, 0.5, 99.0)),
    emphasised=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int,
    inputs: int,
    neurons: int,
    threshold: float,
    least: tuple[float, float],
    last: float,
    emphasised: bool,
    bias: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, acted = torch.randn(rows, inputs).to(dtype), torch.randn(rows, neurons).to(dtype)
    weight = torch.randn(neurons, inputs + 3).to(dtype)[:, :inputs]
    added = torch.randn(neurons).to(dtype) if bias else None
    norm, gates = torch.rand(neurons) + 0.5, torch.tensor([[threshold, least[0]], [last, least[1]]])
    emphasis = torch.rand(rows) + 0.5 if emphasised else None
    score = acted.abs().float() * norm
    kept = lists.reference(score, gates[0], 32)
    counters, told = torch.zeros(3, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    hidden, left = listed_rows(
        x, acted, kept, weight, norm, gates, added, emphasis, counters, counter=3, config=SMALL
    )
    truth, alive = reference(x, acted, kept, weight, gates, added)
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-2}
    torch.testing.assert_close(hidden, truth, **close)

    neurons_gate = decide(score, gates[0])
    count(told[0], neurons_gate)
    assert torch.equal(neurons_gate.keep[0], alive)
    assert counters[1].tolist() == told[0].tolist()
    factor = 1.0 if emphasis is None else emphasis[:, None]
    down = decide(hidden.abs().float() * norm * factor, gates[1], neurons_gate.keep)
    guarded = lists.guarded(left, gates[1])
    found = lists.Kept(left.units, guarded, left.rows, left.arrived, neurons).mask()
    if bool(down.failed):  # then the lists hold those that were left out before, too: they are zero
        assert (found | ~alive).all()
    else:
        assert torch.equal(found, down.keep[0])
    assert left.offered is not None
    assert int(left.offered.sum()) == int(alive.sum())
    assert not left.arrived.any()
    assert not kept.arrived.any()


@settings(max_examples=15)
@given(rows=st.integers(1, 8), inputs=st.integers(1, 70), neurons=st.integers(1, 90), seed=st.integers(0, 99))
def test_weights_of_eight_bits(rows: int, inputs: int, neurons: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, acted, scale = torch.randn(rows, inputs), torch.randn(rows, neurons), torch.rand(neurons)
    weight = torch.randint(-127, 128, (neurons, inputs), dtype=torch.int8)
    norm, gates = torch.ones(neurons), torch.tensor([[0.4, 0.0], [0.5, 0.0]])
    kept = lists.reference(acted.abs(), gates[0], 32)
    hidden, _ = listed_rows(x, acted, kept, weight, norm, gates, scale=scale, config=SMALL)
    truth, _ = reference(x, acted, kept, weight, gates, scale=scale)
    torch.testing.assert_close(hidden, truth, rtol=1e-5, atol=2e-3)


def test_rows_that_are_not_listed_are_not_read() -> None:
    x, acted, weight = torch.randn(1, 16), torch.randn(1, 40), torch.randn(40, 16)
    keep = torch.rand(40) < 0.5
    weight[~keep] = float("inf")
    kept = lists.reference(keep[None].float(), torch.tensor([0.5, 0.0]), 32)
    hidden, _ = listed_rows(x, acted, kept, weight, torch.ones(40), torch.zeros(2, 2), config=SMALL)
    assert hidden.isfinite().all()
    assert not hidden[:, ~keep].any()


@pytest.mark.parametrize(
    ("x", "acted", "weight", "said"),
    [
        (torch.zeros(9, 4), torch.zeros(9, 8), torch.zeros(8, 4), "1 to 8 rows"),
        (torch.zeros(1, 4), torch.zeros(1, 8), torch.zeros(4, 8).t(), "a weight by row"),
        (torch.zeros(1, 4), torch.zeros(1, 9), torch.zeros(8, 4), "8 activations in one piece"),
        (
            torch.zeros(1, 4),
            torch.zeros(1, 8),
            torch.zeros(8, 4, dtype=torch.int8),
            "a scale with a weight of int8",
        ),
    ],
)
def test_what_does_not_fit(x: Tensor, acted: Tensor, weight: Tensor, said: str) -> None:
    kept = lists.reference(torch.ones(1, 8), torch.tensor([0.5, 0.0]), 32)
    with pytest.raises(ValueError, match=said):
        listed_rows(x, acted, kept, weight, torch.ones(8), torch.zeros(2, 2), config=SMALL)
