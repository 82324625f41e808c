import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srrc.relevance import information
from srrc.relevance.calibrate import measure_gates, run_dense, steps
from srrc.relevance.information import FRACTIONS, Settings

SETTINGS = Settings(measured=(0.3, 0.6))


def measure(small: Any, settings: Settings = SETTINGS, batches: int = 2) -> dict[str, Any]:
    return measure_gates(
        small.replay, [small.arguments(seed) for seed in range(batches)], small.output, settings
    )


def test_curves_meet_the_interventions(small: Any) -> None:
    """At a measured fraction and at one between, the curve gives what closing the gate really does."""
    profiles = measure(small)
    batches = [small.arguments(seed) for seed in range(2)]
    for name, profile in profiles.items():
        for fraction, tolerance in ((0.3, 0.02), (0.6, 0.02), (0.45, 0.7)):
            records = {name: (profile.threshold(fraction), 0.0)}
            drifts = [
                information.together(
                    small.replay, b, run_dense(small.replay, b, small.output, SETTINGS), small.output, records
                )
                for b in batches
            ]
            assert profile.drift_at(fraction) == pytest.approx((drifts[0] + drifts[1]).mean, rel=tolerance), (
                name
            )


def test_curves_begin_at_nothing_and_never_descend(small: Any) -> None:
    for profile in measure(small).values():
        assert profile.fractions.tolist() == pytest.approx(FRACTIONS)
        assert profile.drift[0] == 0
        assert (profile.drift.diff() >= 0).all()
        assert profile.drift[-1] > 0
        assert (profile.error[1:] > 0).all()


def test_thresholds_drop_the_fraction_they_stand_for(small: Any) -> None:
    profiles = measure(small)
    profile = profiles["channel:head.weight"]
    x = torch.cat([head_input(small, seed) for seed in range(2)])
    score = x.abs() * small.model.head.weight.norm(dim=0)
    assert (score <= profile.threshold(0.5)).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert profile.cost.units == 24
    assert profile.cost.flops == 2 * 50
    assert profile.cost.bytes == 4 * 50
    kept = (score > profile.threshold(0.5)).float().mean(-1)
    assert profile.min_kept(0.5) == pytest.approx(kept.min().item() - 0.5 / 24)


def head_input(small: Any, seed: int) -> Tensor:
    seen: list[Tensor] = []
    hook = small.model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    small.model(small.batch(seed))
    hook.remove()
    return seen[0].detach()


def test_the_first_positions_are_left_out(small: Any) -> None:
    with torch.no_grad():
        small.model.embed.weight[7] *= 1000
    arguments = small.gated.arguments(
        {"input_ids": torch.cat((torch.full((2, 1), 7), small.batch(0)[:, 1:] % 7), 1)}
    )
    found = [
        measure_gates(small.replay, [arguments], small.output, dataclasses.replace(SETTINGS, skip_first=skip))
        for skip in (0, 1)
    ]
    name = "channel:blocks.0.mix.weight"
    assert found[1][name].quantiles[-1] * 10 < found[0][name].quantiles[-1]


class Relu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 50)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.down(torch.relu(self.up(self.embed(input_ids))))
        return logits


def test_dropping_zeros_is_free(make_setup: Any) -> None:
    model = Relu()
    with torch.no_grad():
        model.up.bias -= 0.5
    setup = make_setup(model)
    profile = measure(setup)["neuron:up.weight/down"]
    zeros = float((torch.relu(setup.model.up(setup.model.embed(setup.batch(0)))) == 0).float().mean())
    assert 0.6 < zeros < 0.9
    assert profile.threshold(0.5) == 0.0
    assert profile.drift_at(0.5) < 1e-9
    assert profile.drift_at(0.95) > 1e-6


def test_every_step_is_reported(small: Any) -> None:
    seen: list[str] = []
    batches = [small.arguments(seed) for seed in range(2)]
    measure_gates(small.replay, batches, small.output, SETTINGS, progress=seen.append)
    assert len(seen) == steps(small.replay, 2) == 28
