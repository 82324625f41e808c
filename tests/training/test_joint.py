"""Gates and adapters together: what is learned, what stays untouched, and that a stopped run goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import srrc
from srrc.errors import ModelError, OptionError
from srrc.gated_model import GatedModel
from srrc.models_zoo import families
from srrc.models_zoo.adapted import merged
from srrc.training import state
from srrc.training.adapters import Adapters
from srrc.training.batches import Batches
from srrc.training.deciding import AtFractions
from srrc.training.distillation import distil
from srrc.training.joint import JointTraining
from srrc.training.routed import Routed
from srrc.training.router import Router
from srrc.training.settings import Joint
from srrc.training.workers import Workers

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))
LENGTH = 16


def call(ids: Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "use_cache": False}


class Run:
    """One training from a fresh start, on a model of its own."""

    def __init__(self, letters: Any, settings: Joint, family: str = "llama") -> None:
        torch._dynamo.reset()
        self.model = families.tiny(family).model
        with torch.no_grad():  # livelier than a fresh model, whose logits hardly differ
            for parameter in self.model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(3)
        profile = srrc.calibrate(self.model, letters, TEXT, windows=4, length=LENGTH, progress=False)
        batches = Batches({"text": torch.tensor(letters(TEXT)["input_ids"])}, settings.rows, LENGTH)
        gated = GatedModel(self.model, call(batches(0)))
        gated.insert(profile.covers, profile.vectors)
        routed = Routed(gated)
        self.router = Router(routed.gates, routed.widths)
        names = [gated.names[name] for name in gated.weights]
        self.adapters = Adapters(self.model, names, settings.rank) if settings.rank else None
        self.training = JointTraining(gated, profile, batches, call, self.router, self.adapters, settings)
        self.logged: list[Mapping[str, float]] = []

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.logged.append(numbers)

    def drift(self) -> float:
        """On a batch that is never trained on."""
        training = self.training
        arguments = training._gated.arguments(call(training._batches(10_000)))
        with torch.no_grad():
            teacher = training._routed.outputs(arguments, None)
            deciding = AtFractions(training._fractions[0.6], self.router)
            return distil(
                training._routed.outputs(training._with_adapters(arguments), deciding)[:, 1:].flatten(0, 1),
                teacher[:, 1:].flatten(0, 1),
            ).item()

    def go(self, path: Path, progress: state.State | None = None) -> state.State:
        return self.training.run(path, "key", self.log, Workers(), progress)


SETTINGS = Joint(
    steps=30, rows=2, length=LENGTH, rank=4, rate=3e-3, router_rate=5e-4, budgets=(0.6,), every=10
)


@pytest.mark.parametrize("variant", ["straight-through", "gumbel", "policy"])
def test_every_variant_brings_the_routed_model_closer(letters: Any, tmp_path: Path, variant: Any) -> None:
    run = Run(letters, Joint(**{**vars(SETTINGS), "variant": variant}))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    first = run.drift()
    run.go(tmp_path / "state.safetensors")
    # Under Gumbel's noise adapters also learn to live with the noise, which is not there now.
    assert run.drift() < (1.0 if variant == "gumbel" else 0.97) * first
    assert any(
        name.endswith("head") and value.abs().sum() > 0 for name, value in run.router.parameters.items()
    )
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} is a base weight"
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_a_stopped_run_goes_on_to_the_same_bits(letters: Any, tmp_path: Path) -> None:
    settings = Joint(**{**vars(SETTINGS), "steps": 6, "every": 3})
    whole = Run(letters, settings).go(tmp_path / "whole.safetensors")

    run = Run(letters, settings)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        if step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run.training.run(tmp_path / "part.safetensors", "key", log, Workers(), None)
    progress = state.load(tmp_path / "part.safetensors", "key")
    assert progress is not None
    assert progress.step == 3
    resumed = Run(letters, settings).go(tmp_path / "part.safetensors", progress)
    assert [n["kl"] for n in resumed.history] == [n["kl"] for n in whole.history]
    for name, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_saved_as_peft_reads_them_and_merge_to_what_was_trained(
    letters: Any, tmp_path: Path, family: str
) -> None:
    run = Run(letters, Joint(**{**vars(SETTINGS), "steps": 5}), family)
    run.go(tmp_path / "state.safetensors")
    assert run.adapters is not None
    run.adapters.save(tmp_path / "adapter")
    base = dict(run.model.named_parameters())
    wanted = {name: (base[name] + run.adapters.delta(name)).detach() for name in run.adapters.names}
    fresh = families.tiny(family).model
    fresh.load_state_dict(run.model.state_dict())
    found = dict(merged(fresh, tmp_path / "adapter").named_parameters())
    assert any(not torch.equal(wanted[name], base[name]) for name in wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(ModelError, match="does not fit this model"):
        merged(families.tiny("bert").model, tmp_path / "adapter")


def test_gates_learn_alone_where_there_are_no_adapters(letters: Any, tmp_path: Path) -> None:
    run = Run(letters, Joint(**{**vars(SETTINGS), "steps": 2, "rank": 0}))
    run.go(tmp_path / "state.safetensors")
    assert all(name.startswith("router/") for name in run.training.parameters)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"steps": 0}, "steps=0"),
        ({"rank": -1}, "rank=-1"),
        ({"budgets": (0.5, 1.2)}, "budgets="),
        ({"budgets": ()}, "budgets="),
        ({"variant": "magic"}, "unknown variant 'magic'"),
    ],
)
def test_bad_settings_get_one_line(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        Joint(**wrong)


def test_the_curriculum_goes_from_easy_to_hard() -> None:
    settings = Joint(steps=100, budgets=(0.4, 0.8, 0.6))
    assert settings.budget(0, 0.99) == 0.8
    assert {settings.budget(99, draw / 10) for draw in range(10)} == {0.8, 0.6, 0.4}
    assert settings.budget(20, 0.99) in {0.8, 0.6}
