"""The kernels under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import lists
from srrc.backends.triton.kernels.activate import KNOWN
from srrc.backends.triton.kernels.gated_mlp import Config, gated_hidden, gated_mlp, reference
from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.sparse_linear import Config as LinearConfig


def weights(neurons: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    gate, up = torch.randn(2, neurons, inputs).div(inputs**0.5).to(dtype).unbind()
    return gate, up


def listed(keep: Tensor, block: int = 32) -> Kept:
    return lists.reference(keep[None].float(), torch.tensor([0.5, 0.0]), block)


def kept_values(found: tuple[Tensor, Kept]) -> Tensor:
    return torch.where(found[1].mask(), found[0], 0.0)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 100),
    neurons=st.integers(1, 70),
    thresholds=st.sampled_from(((-1.0, -1.0), (0.1, -1.0), (-1.0, 0.05), (0.1, 0.05), (99.0, 0.0))),
    chosen=st.sampled_from((None, 0.0, 0.5, 1.0)),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    activation=st.sampled_from(KNOWN),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int,
    inputs: int,
    neurons: int,
    thresholds: tuple[float, float],
    chosen: float | None,
    dtype: torch.dtype,
    activation: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs).to(dtype)
    gate, up = weights(neurons, inputs, dtype)
    norms = torch.rand(2, neurons) + 0.5
    left = None if chosen is None else torch.rand(neurons) < chosen
    given_to = (x, gate, up, norms, torch.tensor(thresholds))
    config = Config(4, 32, 1, block=32) if rows == 1 else Config(16, 32, 1, block=32)
    lists_left = None if left is None else listed(left)
    found = kept_values(gated_hidden(*given_to, lists_left, activation=activation, config=config))
    truth = reference(*given_to, left, activation=activation)
    # What lies at a threshold may fall on either side of it.
    differs = (found == 0) != (truth == 0)
    assert differs.float().mean() <= 0.02 + 1 / neurons
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}
    torch.testing.assert_close(found[~differs], truth[~differs], **tolerance)


@pytest.mark.parametrize("rows", [1, 3])
def test_down_takes_what_is_left(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 48)
    gate, up = weights(70, 48, torch.float32)
    down = torch.randn(70, 33).t()
    given_to = (torch.ones(2, 70), torch.tensor([0.2, 0.1]))
    found = gated_mlp(x, gate, up, down, *given_to)
    torch.testing.assert_close(found, reference(x, gate, up, *given_to) @ down.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_weights_of_dropped_neurons_are_not_read(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 48)
    gate, up = weights(40, 48, torch.float32)
    chosen = torch.arange(40) % 2 == 0
    for weight in (gate, up):
        weight[~chosen] = float("nan")
    found = gated_hidden(x, gate, up, torch.ones(2, 40), torch.tensor([-1.0, -1.0]), listed(chosen, 64))
    assert kept_values(found).isfinite().all()
    assert torch.equal(found[1].mask(), chosen)


def test_nan_is_kept() -> None:
    gate, up = weights(40, 16, torch.float32)
    x = torch.full((1, 16), float("nan"))
    found, kept = gated_hidden(x, gate, up, torch.ones(2, 40), torch.tensor([9.0, 9.0]))
    assert found.isnan().all()
    assert kept.mask().all()


def test_lists_serve_one_launch_after_another() -> None:
    gate, up = weights(100, 16, torch.float32)
    x = torch.randn(2, 16)
    chosen = lists.reference(torch.rand(2, 100), torch.tensor([0.5, 0.0]), 32)
    given_to = (x, gate, up, torch.ones(2, 100), torch.tensor([0.1, 0.1]), chosen)
    config = Config(16, 32, 1, block=32)
    first = gated_hidden(*given_to, config=config)
    assert not chosen.arrived.any()
    assert not first[1].arrived.any()
    again = gated_hidden(*given_to, config=config)
    assert torch.equal(first[1].units, again[1].units)
    assert torch.equal(kept_values(first), kept_values(again))


@settings(max_examples=15)
@given(rows=st.integers(1, 8), inputs=st.integers(1, 60), neurons=st.integers(1, 90), seed=st.integers(0, 99))
def test_weights_of_eight_bits(rows: int, inputs: int, neurons: int, seed: int) -> None:
    torch.manual_seed(seed)
    gate, up = torch.randint(-127, 128, (2, neurons, inputs), dtype=torch.int8)
    down = torch.randint(-127, 128, (neurons, 30), dtype=torch.int8).t()
    x, scales, down_scale = torch.randn(rows, inputs), torch.rand(2, neurons) / 100, torch.rand(30)
    rest = (torch.ones(2, neurons), torch.tensor([0.3, 0.0]))
    config, last = Config(16, 32, 1, block=32), LinearConfig(16, 32, 1, 2)
    found = gated_mlp(
        x,
        gate,
        up,
        down,
        *rest,
        activation="relu",
        scales=scales,
        down_scale=down_scale,
        config=config,
        down_config=last,
    )
    hidden = reference(x, gate, up, *rest, activation="relu", scales=scales)
    truth = hidden.double() @ (down * down_scale[:, None]).t().double()
    assert float((found - truth).norm()) <= 1e-3 * max(1.0, float(truth.norm()))


def test_errors() -> None:
    gate, up = weights(40, 16, torch.float32)
    rest = (torch.ones(2, 40), torch.zeros(2))
    with pytest.raises(ValueError, match="1 to 8 rows"):
        gated_hidden(torch.zeros(9, 16), gate, up, *rest)
    with pytest.raises(ValueError, match="scales with weights of int8"):
        gated_hidden(torch.zeros(1, 16), gate.to(torch.int8), up.to(torch.int8), *rest)
    with pytest.raises(ValueError, match="'swish'"):
        gated_hidden(torch.zeros(1, 16), gate, up, *rest, activation="swish")
    with pytest.raises(ValueError, match="lists are of 39 units"):
        gated_hidden(torch.zeros(1, 16), gate, up, *rest, listed(torch.ones(39, dtype=torch.bool)))
    with pytest.raises(ValueError, match="by row"):
        gated_hidden(torch.zeros(1, 16), gate, up.t().contiguous().t(), *rest)
