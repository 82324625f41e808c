"""The training door and its command, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import srrc
from srrc.cli import app
from srrc.errors import OptionError, ProfileError
from srrc.models_zoo import families
from srrc.models_zoo.adapted import merged
from srrc.profile import Profile
from srrc.training.settings import Joint

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))
SETTINGS = Joint(steps=4, rows=2, length=16, rank=2, budgets=(0.7,), every=2)


def llama() -> nn.Module:
    torch._dynamo.reset()
    return families.tiny("llama").model


@pytest.fixture(scope="module")
def trained(letters: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    out, model = tmp_path_factory.mktemp("train") / "out", llama()
    for phase in ("router", "joint"):
        srrc.train(
            model,
            letters,
            out,
            phase=phase,
            texts={"text": [TEXT]},
            settings=SETTINGS,
            quick=True,
            progress=False,
        )
    return out, model


def test_both_phases_leave_the_model_as_it_was_and_write_what_they_say(
    trained: tuple[Path, nn.Module],
) -> None:
    out, model = trained
    fresh = llama().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    assert {path.name for path in out.iterdir()} >= {
        "profile.srr", "router.json", "router.jsonl", "router.png",
        "adapter", "adapted.srr", "joint.json", "joint.jsonl", "joint.png", "tensorboard",
    }  # fmt: skip
    assert json.loads((out / "joint.json").read_text())["kl"] > 0
    assert not list(out.glob("*.part"))


def test_the_profile_compiles_the_model_it_was_made_for(trained: tuple[Path, nn.Module]) -> None:
    out, _ = trained
    torch._dynamo.reset()
    routed, eager = llama(), llama()
    ids = torch.tensor([[5, 6, 7, 8]])
    routed.compile(backend="srr", options={"budget": 0.8, "profile": out / "profile.srr"})
    with torch.no_grad():
        assert routed(ids).logits.shape == eager(ids).logits.shape
        srrc.set_budget(routed, 1.0)
        torch.testing.assert_close(routed(ids).logits, eager(ids).logits)
    assert srrc.stats(routed)["fallbacks"] == {}


def test_the_adapted_profile_fits_the_merged_model_and_no_other(trained: tuple[Path, nn.Module]) -> None:
    out, _ = trained
    adapted = merged(llama(), out / "adapter")
    profile = Profile.load(out / "adapted.srr")
    profile.check(dict(adapted.named_parameters()))
    with pytest.raises(ProfileError, match="other weights"):
        profile.check(dict(llama().named_parameters()))


def test_a_finished_phase_is_not_done_again(
    trained: tuple[Path, nn.Module], letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = trained
    monkeypatch.setattr("srrc.training.joint.JointTraining._step", None)
    again = srrc.train(
        llama(),
        letters,
        out,
        phase="joint",
        texts={"text": [TEXT]},
        settings=SETTINGS,
        quick=True,
        progress=False,
    )
    assert again.adapter == out / "adapter"


def test_a_trained_profile_is_the_same_each_time_it_is_read(trained: tuple[Path, nn.Module]) -> None:
    out, _ = trained
    first, second = Profile.load(out / "profile.srr"), Profile.load(out / "profile.srr")
    assert first.vectors.keys() == second.vectors.keys()
    for name, vector in first.vectors.items():
        assert torch.equal(vector, second.vectors[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phase", "magic"], "unknown phase 'magic'; known: router, joint"),
        (["--phase", "joint"], "run --phase router first"),
        (["--data", "nowhere.txt"], "cannot read nowhere.txt as text, and it is no domain"),
        (["--budgets", "much"], "budgets='much'; give fractions"),
        (["--variant", "magic"], "unknown variant 'magic'"),
        (["--steps", "0"], "steps=0"),
        (["--profile", "nowhere.srr"], "no profile at nowhere.srr"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "smollm2-135m", "-o", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_too_little_text_and_unknown_phases_are_refused(letters: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fewer than one window"):
        srrc.train(llama(), letters, tmp_path, texts={"text": ["short"]}, progress=False)
    with pytest.raises(OptionError, match="unknown phase"):
        srrc.train(llama(), letters, tmp_path, phase="magic", progress=False)
    with pytest.raises(ProfileError, match="no profile"):
        srrc.train(llama(), letters, tmp_path, phase="joint", texts={"text": [TEXT]}, progress=False)
