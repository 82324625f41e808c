"""`set_budget` before, between and after the compilation of a model's graphs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import srrc
from srrc.errors import OptionError
from srrc.models_zoo import families
from srrc.profile import Profile
from srrc.report import compiled_graphs

pytestmark = pytest.mark.usefixtures("every_gate_pays")

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))


@pytest.fixture(scope="module")
def profile(letters: Any) -> Profile:
    torch._dynamo.reset()
    return srrc.calibrate(families.tiny("llama").model, letters, TEXT, windows=2, length=24, progress=False)


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch._dynamo.reset()
    yield families.tiny("llama").model
    torch._dynamo.reset()


def call(model: nn.Module, length: int = 3, batch: int = 1) -> None:
    with torch.no_grad():
        model(torch.arange(1, batch * length + 1).view(batch, length), use_cache=False)


def budgets(model: nn.Module) -> list[float | None]:
    return [graph.plan.budget for graph in compiled_graphs(model) if graph.plan is not None]


def test_it_moves_graphs_that_are_and_that_will_be_and_recompiles_nothing(
    model: nn.Module, profile: Profile
) -> None:
    model.compile(backend="srr", options={"budget": 0.9, "profile": profile}, dynamic=False)
    call(model)
    (graph,), frames = compiled_graphs(model), counters["stats"]["unique_graphs"]
    srrc.set_budget(model, 0.5)
    call(model)
    assert counters["stats"]["unique_graphs"] == frames
    assert budgets(model) == [0.5]
    assert {tuple(gate.record.tolist()) for gate in graph.gates} != {(-1.0, 0.0)}
    call(model, 4)
    assert budgets(model) == [0.5, 0.5]
    srrc.set_budget(model, 1.0)
    assert budgets(model) == [1.0, 1.0]
    assert {tuple(gate.record.tolist()) for gate in graph.gates} == {(-1.0, 0.0)}


def test_the_ledger_says_what_each_gate_decided_by(model: nn.Module, profile: Profile) -> None:
    model.compile(backend="srr", options={"budget": 0.5, "profile": profile}, dynamic=False)
    call(model)
    call(model)
    (graph,) = compiled_graphs(model)
    entries = {entry.gate: entry for entry in srrc.explain(model).ledger}
    assert entries.keys() == {gate.id for gate in graph.gates}
    for gate in graph.gates:
        entry = entries[gate.id]
        assert (entry.call, entry.signature) == (1, "decode"), "one call of many is sampled, and the first is"
        assert entry.threshold == float(gate.record[0])
        assert entry.relevance == graph.plan.relevance.get(gate.id)
        assert 0 <= entry.kept <= 1
    assert any(entry.kept < 1 and entry.relevance is not None for entry in entries.values())


def test_before_the_first_call_it_holds_for_what_is_compiled_then(model: nn.Module, profile: Profile) -> None:
    compiled: Any = torch.compile(model, backend="srr", options={"budget": 0.9, "profile": profile})
    srrc.set_budget(compiled, 0.6)
    call(compiled)
    assert budgets(model) == [0.6]


def test_compiling_anew_with_other_options_starts_anew(model: nn.Module, profile: Profile) -> None:
    model.compile(backend="srr", options={"budget": 0.9, "profile": profile})
    call(model)
    srrc.set_budget(model, 0.6)
    torch._dynamo.reset()
    model.compile(backend="srr", options={"budget": 0.8, "profile": profile})
    call(model)
    assert budgets(model)[-1] == 0.8


def test_without_a_profile_there_is_nothing_to_set(model: nn.Module) -> None:
    model.compile(backend="srr")
    call(model)
    with pytest.raises(OptionError, match="without a profile"):
        srrc.set_budget(model, 0.5)
    srrc.set_budget(model, 1.0)


def test_without_a_profile_a_budget_set_first_is_refused_at_the_first_call(model: nn.Module) -> None:
    model.compile(backend="srr")
    srrc.set_budget(model, 0.5)
    with pytest.raises(OptionError, match="without a profile"):
        call(model)


def test_a_model_that_is_not_compiled_is_refused(model: nn.Module) -> None:
    with pytest.raises(OptionError, match="not compiled"):
        srrc.set_budget(model, 0.5)


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), "half", None, True])
def test_budgets_out_of_range(model: nn.Module, budget: Any) -> None:
    with pytest.raises(OptionError):
        srrc.set_budget(model, budget)
