"""The calibration door, on tiny models of real families: what it measures, what it leaves alone, what it
refuses.
"""

import copy
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import srrc
from srrc.control.controller import plan
from srrc.errors import ModelError, OptionError, ProfileError
from srrc.gated_model import GatedModel
from srrc.models_zoo import families
from srrc.ops import layer_gate
from srrc.profile import Profile
from srrc.relevance.calibrate import run_dense
from srrc.relevance.information import Settings, together
from srrc.relevance.replay import Replay

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))


def llama() -> nn.Module:
    torch._dynamo.reset()
    return families.tiny("llama").model


@pytest.fixture(scope="module")
def calibrated(letters: Any) -> tuple[nn.Module, Profile]:
    model = llama()
    return model, srrc.calibrate(model, letters, TEXT, windows=4, length=24, progress=False)


def test_every_gate_has_a_curve(calibrated: tuple[nn.Module, Profile]) -> None:
    _, profile = calibrated
    kinds = {gate.id.split(":")[0] for gate in profile.gates.values()}
    assert kinds == {"channel", "neuron", "vocab"}
    for layer in range(2):
        assert f"channel:model.layers.{layer}.self_attn.q_proj.weight" in profile.gates
        assert f"neuron:model.layers.{layer}.mlp.gate_proj.weight/down" in profile.gates
    assert not any(name.endswith("/neuron") for name in profile.gates)
    assert all(gate.drift[-1] > 0 for gate in profile.gates.values())
    assert profile.joint
    assert profile.texts["tokens"] == 4 * 24
    assert profile.texts["measure"] == "logits"
    assert {name.rsplit("/", 1)[1] for name in profile.vectors} >= {"rotation", "inverse", "mean", "exact"}


def test_predicted_drift_is_what_other_text_shows(calibrated: tuple[nn.Module, Profile]) -> None:
    model, profile = calibrated
    made = plan(profile, max_drift=profile.joint[-1].measured / 2)
    assert made.spent < 1
    calls = [{"input_ids": torch.tensor([[ord(c) % 256 for c in TEXT[5000:5048]]]), "use_cache": False}]
    with torch.no_grad():
        gated = GatedModel(model, calls[0])
        gated.insert(profile.covers, profile.vectors)
        replay = Replay(gated.gm, gated.gates)
        arguments, settings = gated.arguments(calls[0]), Settings()
        reference = run_dense(replay, arguments, gated.output, settings)
        found = together(replay, arguments, reference, gated.output, made.thresholds["decode"])
    assert found.mean == pytest.approx(made.drift, rel=0.5)


def test_curves_of_a_like_model_are_taken_over(calibrated: tuple[nn.Module, Profile], letters: Any) -> None:
    model, profile = calibrated
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(
                1 + 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    sizes = {"windows": 4, "length": 24, "progress": False}
    taken = srrc.calibrate(moved, letters, TEXT, **sizes, curves=profile)
    anew = srrc.calibrate(moved, letters, TEXT, **sizes)
    taken.check(dict(moved.named_parameters()))
    assert taken.texts["curves"] == profile.digest()
    assert list(taken.gates) == list(profile.gates)
    for name, gate in taken.gates.items():
        assert torch.equal(gate.drift, profile.gates[name].drift)
        if gate.kind == "vocab":
            continue  # its scores are of a basis, which is taken over as well
        assert torch.equal(gate.quantiles, anew.gates[name].quantiles)
        assert torch.equal(gate.kept_low, anew.gates[name].kept_low)
        assert not torch.equal(gate.quantiles, profile.gates[name].quantiles)
    assert [joint.added for joint in taken.joint] == [joint.added for joint in profile.joint]
    assert taken.joint != profile.joint


def test_it_survives_a_file_and_fits_its_model(calibrated: tuple[nn.Module, Profile], tmp_path: Path) -> None:
    model, profile = calibrated
    profile.save(tmp_path / "p.srr")
    back = Profile.load(tmp_path / "p.srr")
    back.check(dict(model.named_parameters()))
    assert plan(back, budget=0.8).thresholds == plan(profile, budget=0.8).thresholds


def test_the_model_is_left_as_it_was(letters: Any) -> None:
    model = llama()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    model.train()
    model.requires_grad_(True)
    srrc.calibrate(model, letters, TEXT, windows=1, length=8, quick=True, progress=False)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.stride() == strides[name]
        assert parameter.requires_grad
        assert parameter.grad is None


def test_it_is_repeatable(letters: Any) -> None:
    first, second = (
        srrc.calibrate(llama(), letters, TEXT, windows=2, length=12, quick=True, progress=False)
        for _ in range(2)
    )
    assert first.texts["sha256"] == second.texts["sha256"]
    for name, gate in first.gates.items():
        assert torch.equal(gate.drift, second.gates[name].drift)


def test_neuron_gates_come_when_asked_for(letters: Any) -> None:
    profile = srrc.calibrate(
        llama(), letters, TEXT, windows=2, length=12, quick=True, neurons=True, progress=False
    )
    name = "neuron:model.layers.0.mlp.gate_proj.weight/neuron"
    assert profile.gates[name].drift[-1] > 0
    assert profile.vectors[f"{name}/norm"].shape == (profile.gates[name].cost.units,)


LETTERS = "".join(random.Random(0).choices(string.printable, k=8000))
"""Text without repetition: where the first layer sees the same few tokens, many rows score the same."""


@pytest.fixture(scope="module")
def layered(letters: Any) -> tuple[nn.Module, Profile]:
    model = llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, srrc.calibrate(model, letters, LETTERS, windows=4, length=48, layers=True, progress=False)


def test_layer_gates_come_when_asked_for(layered: tuple[nn.Module, Profile]) -> None:
    _, profile = layered
    gates = {name: gate for name, gate in profile.gates.items() if gate.kind == "residual"}
    assert gates, "no plan takes a layer gate, so this tests nothing"
    for name, gate in gates.items():
        assert gate.cost.units == 1
        assert gate.cost.flops > 64 * 64
        assert gate.drift[-1] > gate.drift[1] > 0
        assert gate.kept_low.max() == 0, "a row may be left out"
        assert profile.vectors[f"{name}/probe"].shape == (65,)
        assert gate.threshold(0.5) > 0
    around = {gate.id: gate.around for gate in profile.gates.values()}
    for layer in range(2):
        branch = f"residual:model.layers.{layer}.post_attention_layernorm.weight"
        assert around[f"neuron:model.layers.{layer}.mlp.gate_proj.weight/down"] == branch
        # Keys share an op with queries, and are stored for later tokens.
        assert around[f"channel:model.layers.{layer}.self_attn.q_proj.weight"] == ""
    mlp = next(gate for name, gate in gates.items() if "post_attention" in name)
    assert mlp.cost.flops == 2 * 3 * 64 * 128
    assert mlp.cost.bytes == pytest.approx(4 * 3 * 64 * 128, rel=0.05)


def test_a_probe_tells_how_much_a_branch_adds(layered: tuple[nn.Module, Profile]) -> None:
    model, profile = layered
    checked = 0
    for index, layer in enumerate(model.model.layers):
        name = f"residual:model.layers.{index}.post_attention_layernorm.weight"
        if name not in profile.gates:
            continue
        seen: list[Tensor] = []
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        hooks = [
            norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])),
            mlp.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output)),
        ]
        with torch.no_grad():
            model(torch.tensor([[ord(letter) % 256 for letter in LETTERS[-400:-150]]]), use_cache=False)
        for hook in hooks:
            hook.remove()
        stream, added = (value[0, 1:] for value in seen)
        predicted = layer_gate.score(stream, profile.vectors[f"{name}/probe"]).flatten().log()
        true = (added.norm(dim=-1) / stream.norm(dim=-1)).log()
        # Of weights drawn by lot; by chance it would be within 0.13 of zero, 19 times in 20.
        assert torch.corrcoef(torch.stack((predicted, true)))[0, 1] > 0.25, name
        checked += 1
    assert checked


def test_layer_gates_that_no_plan_takes_are_left_out(
    layered: tuple[nn.Module, Profile], monkeypatch: pytest.MonkeyPatch, letters: Any
) -> None:
    model, _ = layered
    torch._dynamo.reset()
    monkeypatch.setattr("srrc.calibration.USEFUL_DRIFT", 0.0)
    options = {"windows": 2, "length": 24, "quick": True, "layers": True, "progress": False}
    profile = srrc.calibrate(model, letters, LETTERS, **options)
    assert not any(name.startswith("residual:") for name in (*profile.gates, *profile.vectors))
    assert any(name.startswith("channel:") for name in profile.gates)


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
def test_models_that_take_batches(family: str) -> None:
    torch._dynamo.reset()
    tiny = families.tiny(family)
    batches = [{**tiny.inputs(batch=2, length=9), **no_cache(family)} for _ in range(3)]
    profile = srrc.calibrate(tiny.model, batches=batches, quick=True, layers=True, progress=False)
    assert profile.gates
    assert all(torch.isfinite(gate.drift).all() for gate in profile.gates.values())
    assert any(gate.drift[-1] > 0 for gate in profile.gates.values())
    expected = "values" if hasattr(tiny.model(**batches[0]), "last_hidden_state") else "logits"
    assert profile.texts["measure"] == expected


def no_cache(family: str) -> dict[str, bool]:
    return {"use_cache": False} if family == "gpt2" else {}


def test_a_plain_module_and_tensor_batches() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    profile = srrc.calibrate(model, batches=[torch.randn(16, 8) for _ in range(3)], progress=False)
    assert profile.gates.keys() >= {"neuron:0.weight/input", "neuron:0.weight/down"}


class TestRefusals:
    def test_neither_text_nor_batches(self) -> None:
        with pytest.raises(OptionError, match="needs a tokenizer"):
            srrc.calibrate(llama(), progress=False)

    def test_no_batches(self) -> None:
        with pytest.raises(OptionError, match="batches= is empty"):
            srrc.calibrate(llama(), batches=[], progress=False)

    @pytest.mark.parametrize("given", [{"windows": 0}, {"length": -3}, {"windows": 1.5}, {"length": True}])
    def test_sizes(self, given: dict[str, Any], letters: Any) -> None:
        with pytest.raises(OptionError, match="whole number of at least 1"):
            srrc.calibrate(llama(), letters, TEXT, progress=False, **given)

    def test_too_little_text(self, letters: Any) -> None:
        with pytest.raises(ModelError, match="2 tokens are too little"):
            srrc.calibrate(llama(), letters, "ab", progress=False)

    def test_a_graph_break(self) -> None:
        class Breaks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.one(x)
                torch._dynamo.graph_break()
                result: Tensor = self.two(x)
                return result

        with pytest.raises(ModelError, match="does not capture the model as one graph"):
            srrc.calibrate(Breaks(), batches=[torch.randn(3, 4)], progress=False)

    def test_no_place_for_a_gate(self) -> None:
        with pytest.raises(ModelError, match="no place where a gate can stand"):
            srrc.calibrate(nn.Conv1d(2, 2, 1), batches=[torch.randn(1, 2, 5)], progress=False)

    def test_curves_of_another_model(self, letters: Any, calibrated: tuple[nn.Module, Profile]) -> None:
        torch._dynamo.reset()
        other = families.tiny("gpt2").model
        with pytest.raises(ProfileError, match="curves are of another model"):
            srrc.calibrate(
                other, letters, TEXT, windows=1, length=8, quick=True, progress=False, curves=calibrated[1]
            )

    def test_batches_of_several_shapes(self) -> None:
        model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4))
        with pytest.raises(ModelError, match="same shapes"):
            srrc.calibrate(model, batches=[torch.randn(3, 4), torch.randn(5, 4)], progress=False)


def test_the_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str], letters: Any) -> None:
    srrc.calibrate(llama(), letters, TEXT, windows=1, length=8, quick=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "calibrating" in captured.err
