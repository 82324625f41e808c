"""What a compiled model learns on each kind of text: found again, kept apart, kept in a file."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import srrc
from srrc.errors import OptionError, ProfileError
from srrc.profile import Joint, Profile
from srrc.relevance.context import kept_basis

pytestmark = pytest.mark.usefixtures("every_gate_pays")

KINDS = ("abc", "xyz")


def text(kind: int, seed: int, count: int = 96) -> str:
    draw = torch.Generator().manual_seed(10 * seed + kind)
    letters = KINDS[kind]
    return "".join(letters[int(at)] for at in torch.randint(0, len(letters), (count,), generator=draw))


@pytest.fixture(scope="module")
def profile(lively: Any, letters: Any) -> Profile:
    texts = [text(kind, seed) for seed in range(12) for kind in (0, 1)]
    made = srrc.calibrate(lively(), letters, texts, windows=6, length=64, progress=False)
    open_ended = {
        name: dataclasses.replace(gate, kept_low=torch.zeros_like(gate.kept_low))
        for name, gate in made.gates.items()
    }
    return dataclasses.replace(made, gates=open_ended, joint=(Joint(1e-9, 1e-9, 0.0), Joint(1.0, 1.0, 0.0)))


def answer(model: nn.Module, ids: Tensor, steps: int = 4) -> None:
    """A request: a prompt, and a few tokens after it."""
    with torch.no_grad():
        model(ids)
        for step in range(steps):
            model(ids[:, step : step + 1])


def test_calibration_says_what_contexts_are_measured_in(lively: Any, profile: Profile) -> None:
    basis = kept_basis(profile.vectors)
    assert basis is not None
    assert basis.projection.shape[1] == len(basis.mean) == lively().config.hidden_size


def test_the_second_request_of_a_kind_finds_its_plan(lively: Any, profile: Profile, letters: Any) -> None:
    model = lively()
    model.compile(
        backend="srr", options={"profile": profile, "budget": 0.8, "max_drift": 1.0, "feedback": 1.0}
    )
    for seed in range(3):
        for kind in (0, 1):
            answer(model, torch.tensor([letters(text(kind, 100 + seed))["input_ids"]]))
    told = srrc.stats(model)["history"]
    assert told["hits"] + told["misses"] == 6
    assert told["hits"] >= 3
    assert told["domains"] == told["misses"]
    assert told["seconds_saved"] > 0
    srrc.stats(model, reset=True)
    assert srrc.stats(model)["history"]["hits"] == 0


def test_contexts_are_apart(lively: Any, profile: Profile, letters: Any) -> None:
    """What one user's texts taught does not move another's plan."""
    model = lively()
    options = {"profile": profile, "budget": 0.8, "max_drift": 1e-4, "feedback": 1.0, "context": "ada"}
    model.compile(backend="srr", options=options)
    prompt = torch.tensor([letters(text(0, 200))["input_ids"]])
    answer(model, prompt, steps=40)
    level = srrc.stats(model)["drift"]["level"]
    srrc.set_context(model, "bob")
    answer(model, prompt, steps=1)
    assert srrc.stats(model)["history"]["context"] == "bob"
    assert srrc.stats(model)["drift"]["level"] < 4e-5 < level
    answer(model, prompt, steps=60)
    srrc.set_context(model, "ada")
    answer(model, prompt, steps=0)
    with torch.no_grad():
        model(prompt[:, :1])
    ada = srrc.stats(model)["drift"]["level"]
    assert ada == pytest.approx(level, abs=3e-5)  # moved by its own last measurements alone


def test_a_context_is_a_name_and_needs_a_model_that_ran(lively: Any, profile: Profile) -> None:
    model = lively()
    model.compile(backend="srr", options={"profile": profile, "budget": 0.8})
    with pytest.raises(OptionError, match="ran once"):
        srrc.set_context(model, "ada")
    with pytest.raises(OptionError, match="is not a name"):
        srrc.set_context(model, 3)  # type: ignore[arg-type]


def test_a_history_of_another_profile_is_refused(
    lively: Any, profile: Profile, letters: Any, tmp_path: Path
) -> None:
    options = {"budget": 0.8, "history": tmp_path / "history.srr"}
    ids = torch.tensor([letters(text(0, 1))["input_ids"]])
    model = lively()
    model.compile(backend="srr", options={**options, "profile": profile})
    answer(model, ids)
    other = dataclasses.replace(profile, texts={**profile.texts, "sha256": "another"})
    model = lively()
    model.compile(backend="srr", options={**options, "profile": other})
    with pytest.raises(ProfileError, match="another profile"):
        answer(model, ids)
    model = lively()
    model.compile(backend="srr", options={**options, "profile": profile, "history": tmp_path / "no" / "h"})
    with pytest.raises(ProfileError, match="cannot write"):
        answer(model, ids)


_SERVE = """
import sys, torch, srrc
from srrc.models_zoo import families
import srrc.compiler
srrc.compiler.gate_times = lambda calls: {}
model = families.tiny("llama").model
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(3)
options = {"profile": sys.argv[1], "history": sys.argv[2], "budget": 0.8, "feedback": 0.0}
model.compile(backend="srr", options=options)
ids = torch.randint(4, 40, (1, 96), generator=torch.Generator().manual_seed(0))
for _ in range(2):
    with torch.no_grad():
        model(ids)
        out = model(ids[:, :1]).logits
told = srrc.stats(model)["history"]
print(told["hits"], told["misses"], out.double().sum().item().hex())
"""


def test_a_new_process_finds_what_another_learned_and_decides_the_same(
    profile: Profile, tmp_path: Path
) -> None:
    profile.save(tmp_path / "profile.srr")

    def serve() -> list[str]:
        command = [sys.executable, "-c", _SERVE, str(tmp_path / "profile.srr"), str(tmp_path / "history.srr")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout.split()

    first, second = serve(), serve()
    assert first[:2] == ["1", "1"]
    assert second[:2] == ["2", "0"]
    assert first[2] == second[2]
