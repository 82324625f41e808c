"""Feedback on a compiled model whose texts drift far more than its profile says."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import srrc
from srrc.errors import SrrWarning
from srrc.profile import Joint, Profile
from srrc.relevance.drift import measure
from srrc.report import compiled_graphs

pytestmark = pytest.mark.usefixtures("every_gate_pays")

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))
CALLS, OPTIMISM = 120, 50.0


@pytest.fixture(scope="module")
def optimist(lively: Any, letters: Any) -> Profile:
    """A profile that says a fiftieth of what each gate drifts by: the texts have changed since."""
    made = srrc.calibrate(lively(), letters, TEXT, windows=4, length=24, progress=False)
    gates = {
        name: dataclasses.replace(gate, drift=gate.drift / OPTIMISM, kept_low=torch.zeros_like(gate.kept_low))
        for name, gate in made.gates.items()
    }
    return dataclasses.replace(made, gates=gates, joint=(Joint(1e-9, 1e-9, 0.0), Joint(1.0, 1.0, 0.0)))


def texts() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(4, 100, (1, 4), generator=draw) for _ in range(CALLS)]


def drifts(lively: Any, profile: Profile, **options: object) -> tuple[list[float], nn.Module]:
    eager, model = lively(), lively()
    model.compile(backend="srr", options={"profile": profile, **options})
    with torch.no_grad():
        found = [measure(eager(ids).logits, model(ids).logits, "logits").mean for ids in texts()]
    return found, model


def test_drift_is_brought_back_under_the_bound_and_without_feedback_it_is_not(
    lively: Any, optimist: Profile
) -> None:
    harmed, _ = drifts(lively, optimist, max_drift=1e-4, feedback=0.0)
    bound = sum(harmed) / CALLS / 5
    unwatched, blind = drifts(lively, optimist, max_drift=bound, feedback=0.0)
    watched, model = drifts(lively, optimist, max_drift=bound, feedback=1.0)
    assert sum(unwatched[60:]) / 60 > 1.5 * bound
    assert sum(watched[60:]) / 60 < 1.3 * bound
    assert srrc.stats(blind)["drift"]["samples"] == 0
    told = srrc.stats(model)
    assert told["drift"]["samples"] == CALLS
    assert told["drift"]["low"] <= told["drift"]["mean"] <= told["drift"]["high"]
    assert told["drift"]["level"] < bound
    assert told["events"]["plan"] > 0
    explained = srrc.explain(model)
    assert any("gates may now drift by" in event.text for event in explained.events)
    assert str(explained.events[-1]) in str(explained)


def test_gates_are_explored_and_their_curves_corrected(lively: Any, optimist: Profile) -> None:
    _, model = drifts(lively, optimist, budget=0.8, feedback=1.0)
    told = srrc.stats(model)
    assert told["events"]["explored"] > CALLS / 10
    events = [event for event in srrc.explain(model).events if event.kind == "explored"]
    numbers = [event.numbers for event in events]
    assert (
        max(each["drift"] / each["expected"] for each in numbers) > 3
    )  # fifty times too little, in the mean
    assert max(each["factor"] for each in numbers) > 1.3
    assert told["drift"]["bound"] is None


def test_counters_start_anew(lively: Any, optimist: Profile) -> None:
    _, model = drifts(lively, optimist, max_drift=1e-4, feedback=1.0)
    assert srrc.stats(model, reset=True)["events"]
    assert srrc.stats(model)["events"] == {}
    assert srrc.explain(model).events == ()


@pytest.mark.parametrize("step", ["answer", "drift_between"])
def test_without_room_for_a_dense_answer_it_goes_on_without(
    lively: Any, optimist: Profile, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tried = []

    def full(*args: Any, **options: Any) -> Tensor:
        tried.append(args)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(f"srrc.routing.{step}", full)
    with pytest.warns(SrrWarning, match="feedback is off from now on"):
        _, model = drifts(lively, optimist, budget=0.7, feedback=1.0)
    assert len(tried) == 1
    assert srrc.stats(model)["drift"]["samples"] == 0


def test_a_call_that_is_captured_reads_nothing(
    lively: Any, optimist: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a CUDA graph of the user's own, to read anything of the card is an error."""
    monkeypatch.setattr("srrc.routing._is_being_captured", lambda tensor: True)
    _, model = drifts(lively, optimist, budget=0.7, feedback=1.0)
    assert srrc.stats(model)["drift"]["samples"] == 0
    assert not any(graph.ledger.entries() for graph in compiled_graphs(model))
