"""A compiled model with a budget in time."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import srrc
from srrc.control.gate_time import GateTime
from srrc.control.pace import FIRST, WINDOW
from srrc.errors import OptionError
from srrc.models_zoo import families
from srrc.profile import Profile

CALLS = 2 + FIRST + 8 * WINDOW


@pytest.fixture(scope="module")
def profile(letters: Any) -> Profile:
    torch._dynamo.reset()
    text = " ".join(f"the cost of {number}" for number in range(200))
    made = srrc.calibrate(families.tiny("llama").model, letters, text, windows=4, length=24, progress=False)
    gates = {
        name: dataclasses.replace(gate, kept_low=torch.zeros_like(gate.kept_low))
        for name, gate in made.gates.items()
    }
    return dataclasses.replace(made, gates=gates)


@pytest.fixture(autouse=True)
def gates_that_save_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they would on a larger model."""
    times = GateTime(1e-5, ((0.0, 1e-5), (0.5, 0.5e-5)))
    monkeypatch.setattr(
        "srrc.compiler.gate_times",
        lambda calls: {gate.id: times for call in calls for gate in call.gates if gate.flops},
    )


def run(model: nn.Module, calls: int = CALLS) -> None:
    with torch.no_grad():
        for call in range(calls):
            model(torch.tensor([[4 + call % 50]]))


def test_more_is_skipped_until_calls_take_what_was_asked_for(profile: Profile) -> None:
    torch._dynamo.reset()
    model = families.tiny("llama").model
    model.compile(backend="srr", options={"profile": profile, "budget": "100 s"})
    run(model)
    told = srrc.stats(model)
    assert told["latency"]["fraction"] == 1.0
    assert 0 < told["latency"]["median"] < 100
    assert not told["latency"]["late"]
    assert told["flops_executed"] == pytest.approx(told["flops_dense"], rel=0.1)
    srrc.set_budget(model, "1 us")
    run(model)
    told = srrc.stats(model)["latency"]
    assert told["asked"] == pytest.approx(1e-6)
    assert told["fraction"] < 0.7
    assert told["late"]
    spent = [event.numbers["budget"] for event in srrc.explain(model).events if event.kind == "pace"]
    assert len(spent) > 2
    assert spent == sorted(spent, reverse=True)  # gradually
    srrc.set_budget(model, 0.9)
    assert srrc.stats(model)["latency"] is None


def test_a_time_needs_a_profile() -> None:
    model = families.tiny("llama").model
    model.compile(backend="srr", options={"budget": "9 ms"})
    with pytest.raises(OptionError, match="needs options"):
        run(model, 1)
