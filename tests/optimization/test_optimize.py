"""`srrc.optimize` and `srrc optimize` from end to end, on tiny models."""

import dataclasses
import json
import logging
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

import srrc
from srrc import cli
from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.session import Session
from srrc.errors import DriftError, ModelError, OptionError, ProfileError
from srrc.models_zoo import families
from srrc.optimization import optimize as door
from srrc.optimization import reader_of, texts
from srrc.optimization.quality import Quality
from srrc.optimization.settings import Settings
from srrc.optimization.texts import heldout

QUICK = Settings(prompts=2, new_tokens=4, heldout_tokens=256, rounds=2, prefill=16, past=8)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def llama() -> Any:
    return families.tiny("llama").model


def test_exact_by_default(tmp_path: Path) -> None:
    report = srrc.optimize(llama(), tmp_path / "out", settings=QUICK)
    (file,) = report.files
    assert not file.gates
    assert file.parity.tokens == (2, 2)
    assert max(file.parity.worst.values()) < 1e-5
    assert {"prefill", "decode"} == set(file.latency)
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert {
        "model.onnx",
        "model.onnx.data",
        "config.json",
        "genai_config.json",
        "srrc_report.json",
        "README.md",
    } <= names
    written = json.loads((tmp_path / "out" / "srrc_report.json").read_text())
    assert written["files"][0]["parity"]["tokens"] == [2, 2]
    assert written["machine"]["onnxruntime"]
    inputs = [
        each.name for each in onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.input
    ]
    assert inputs[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs[3:] == [f"past_key_values.{n}.{part}" for n in range(2) for part in ("key", "value")]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.usefixtures("paying")
def test_fuel_allows_so_many_gates(tmp_path: Path, letters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(QUICK, budget=0.1)
    for fuel in (0, 2):
        monkeypatch.setenv("SRRC_FUEL", str(fuel))
        report = srrc.optimize(llama(), tmp_path / str(fuel), tokenizer=letters, settings=settings)
        assert len(report.files[0].gates) == fuel
    monkeypatch.setenv("SRRC_FUEL", "many")
    with pytest.raises(OptionError, match="not a whole number of gates"):
        srrc.optimize(llama(), tmp_path / "many", tokenizer=letters, settings=settings)
    assert not (tmp_path / "many").exists()


@pytest.mark.usefixtures("paying")
def test_a_budget_gates_and_one_file_serves_others(tmp_path: Path, letters: Any) -> None:
    settings = dataclasses.replace(QUICK, budget=0.6, frontier=True, variants=(1.0, 0.8, 0.37))
    report = srrc.optimize(llama(), tmp_path / "out", tokenizer=letters, settings=settings)
    (file,) = report.files
    assert 0.5 <= file.planned["latency"] <= 0.6, "a head's gate saves a tenth at once"
    assert file.gates
    assert [gate.index for gate in file.gates] == list(range(len(file.gates)))
    assert file.quality is not None
    assert file.quality.kl < 0.05
    assert file.budgets[1.0] == [-1.0] * len(file.gates)
    assert file.planned["latency"] - 0.01 <= min(set(file.budgets) - {0.37}) <= 0.6
    assert file.frontier is not None
    assert [point.budget for point in file.frontier.budgets] == list(file.budgets)
    assert file.variants == ["model-0.8.onnx", "model-0.37.onnx", "model-1.onnx"]
    drifts = [point.quality.kl for point in file.frontier.skipped]
    assert drifts[0] < 1e-9 < drifts[1] <= drifts[-1]
    assert (tmp_path / "out" / "model-frontier.png").stat().st_size > 10_000
    session = Session(tmp_path / "out" / "model.onnx")
    ids = torch.arange(4, 20)[None]
    feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(16)[None]}
    feed |= {
        f"past_key_values.{n}.{part}": torch.zeros(1, 2, 0, 16) for n in range(2) for part in ("key", "value")
    }
    with torch.no_grad():
        eager = llama()(ids).logits
    opened = session.run({**feed, THRESHOLDS: torch.tensor(file.budgets[1.0])})["logits"]
    torch.testing.assert_close(opened, eager, rtol=1e-4, atol=1e-5)
    gated = session.run(feed)["logits"]
    assert not torch.equal(gated, opened)
    asked = session.run({**feed, THRESHOLDS: torch.tensor([gate.threshold for gate in file.gates])})["logits"]
    assert torch.equal(asked, gated), "the default is not the plan"
    for budget in (0.8, 0.37):
        variant = Session(tmp_path / "out" / f"model-{budget}.onnx")
        assert THRESHOLDS not in variant.inputs
        limits = torch.tensor(file.budgets[budget])
        assert torch.equal(variant.run(feed)["logits"], session.run({**feed, THRESHOLDS: limits})["logits"])
    dense = Session(tmp_path / "out" / "model-1.onnx")
    torch.testing.assert_close(dense.run(feed)["logits"], eager, rtol=1e-4, atol=1e-5)
    graph = onnx.load(tmp_path / "out" / "model-1.onnx", load_external_data=False).graph
    assert "If" not in {node.op_type for node in graph.node}
    assert [each.name for each in (tmp_path / "out").glob("*.data")] == ["model.onnx.data"]


def test_gates_that_do_not_pay_are_left_out_and_the_report_says_so(tmp_path: Path, letters: Any) -> None:
    settings = dataclasses.replace(QUICK, budget=0.6)
    (file,) = srrc.optimize(llama(), tmp_path / "out", tokenizer=letters, settings=settings).files
    told = set(file.left_out.values())
    assert "measured slower in ONNX Runtime" in told or "the budget is reached without it" in told
    assert len(file.gates) + sum("coarse" in name for name in file.left_out) >= 4


@pytest.mark.usefixtures("paying")
def test_too_much_drift_writes_nothing(tmp_path: Path, letters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(self: Any, dense: Any, gated: Any, extras: Any) -> list[Quality]:
        return [Quality(0.3, 0.0, 2.0, 1.0, 2.0, 10)]

    monkeypatch.setattr("srrc.optimization.reader.TextReader.quality", drifting)
    settings = dataclasses.replace(QUICK, max_drift=0.1)
    with pytest.raises(DriftError, match=r"drifts 0\.3000 nats a token.*more than the 0\.1"):
        srrc.optimize(llama(), tmp_path / "out", tokenizer=letters, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_other_weights_is_refused(tmp_path: Path) -> None:
    profile = srrc.calibrate(families.tiny("llama").model, None, batches=[{"input_ids": torch.arange(8)[None]}] * 3,
                             quick=True, coarse=8, channels=False, progress=False)  # fmt: skip
    other = families.tiny("llama", seed=5).model
    with pytest.raises(ProfileError):
        srrc.optimize(
            other, tmp_path / "out", profile=profile, settings=dataclasses.replace(QUICK, budget=0.7)
        )
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_has_not_is_one_line(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(ModelError, match=r"cannot export.*linalg_eig"):
        srrc.optimize(Odd(), tmp_path / "out", inputs={"x": torch.eye(3)[None]}, settings=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with pytest.raises(ModelError, match="give inputs="):
        srrc.optimize(Plain(), tmp_path / "out", settings=QUICK)
    report = srrc.optimize(
        Plain(), tmp_path / "out" / "plus.onnx", inputs={"x": torch.zeros(2, 5)}, settings=QUICK
    )
    assert [each.name for each in report.files] == ["plus.onnx"]
    assert (tmp_path / "out" / "plus.onnx").is_file()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_of_few_bits_compose_with_gates(
    precision: str, tmp_path: Path, letters: Any, paying: None
) -> None:
    settings = dataclasses.replace(QUICK, budget=0.6, precision=precision)
    (file,) = srrc.optimize(llama(), tmp_path / "out", tokenizer=letters, settings=settings).files
    assert file.gates
    assert file.quality is not None
    assert 0 < file.quality.kl < 0.05
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert "MatMulNBits" in {node.op_type for node in graph.node}
    assert max(file.parity.worst.values()) < 1e-4, "wiring is compared before weights are rounded"
    assert not logging.getLogger().handlers or logging.getLogger().level >= logging.WARNING


def test_float16_runs_and_a_missing_kernel_is_one_line(tmp_path: Path) -> None:
    half = dataclasses.replace(QUICK, precision="float16")
    (file,) = srrc.optimize(llama().half(), tmp_path / "half", settings=half).files
    assert max(file.parity.worst.values()) < 3e-2
    other = dataclasses.replace(QUICK, precision="bfloat16")
    with pytest.raises(ModelError, match=r"ONNX Runtime does not load model\.onnx: .*implementation"):
        srrc.optimize(llama().bfloat16(), tmp_path / "bf16", settings=other)
    assert not (tmp_path / "bf16").exists()


@pytest.mark.parametrize("name", [pytest.param("t5", marks=pytest.mark.slow), "whisper", "bert"])
def test_other_kinds_of_model(name: str, tmp_path: Path) -> None:
    report = srrc.optimize(families.tiny(name).model, tmp_path / "out", settings=QUICK)
    expected = ["model.onnx"] if name == "bert" else ["encoder_model.onnx", "decoder_model.onnx"]
    assert [each.name for each in report.files] == expected
    assert not (tmp_path / "out" / "genai_config.json").exists()


@pytest.mark.usefixtures("paying")
@pytest.mark.parametrize("name", ["bert", pytest.param("bart", marks=pytest.mark.slow)])
def test_what_takes_text_is_calibrated_and_judged_on_it(
    name: str, tmp_path: Path, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(texts, "heldout", lambda *given, **named: read.append(1) or heldout(*given, **named))
    monkeypatch.setattr(reader_of, "heldout", texts.heldout)
    settings = dataclasses.replace(QUICK, budget=0.6)
    report = srrc.optimize(families.tiny(name).model, tmp_path / "out", tokenizer=letters, settings=settings)
    first = report.files[0]
    assert len(read) == len(report.files), "the decoder of an encoder-decoder writes about text"
    assert first.gates
    assert first.quality is not None
    assert first.quality.tokens == 256
    assert 0 < first.quality.kl < 0.5


def test_a_processor_has_its_tokenizer(letters: Any) -> None:
    assert texts.tokenizer_in(letters) is letters
    assert texts.tokenizer_in(types.SimpleNamespace(tokenizer=letters)) is letters
    assert texts.tokenizer_in(types.SimpleNamespace()) is None
    assert texts.tokenizer_in(None) is None


def test_genai_finds_the_inputs_and_the_cache(tmp_path: Path) -> None:
    srrc.optimize(llama(), tmp_path / "out", settings=QUICK)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert decoder["filename"] == "model.onnx"
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 16)
    assert decoder["inputs"]["past_key_names"] % 0 == "past_key_values.0.key"
    assert config["search"]["past_present_share_buffer"] is False


FACTORY = """
from srrc.models_zoo import families
def llama():
    return families.tiny("llama").model
def picture():
    tiny = families.tiny("resnet")
    return tiny.model, tiny.inputs(2, 4)
"""
ARGUMENTS = ["--prompts", "1", "--new-tokens", "2", "--rounds", "1", "--heldout-tokens", "256"]


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("factory")
def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        cli.app, ["optimize", "made_here:llama", "-o", str(out), "--json", *ARGUMENTS]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"][0]["name"] == "model.onnx"
    again = CliRunner().invoke(cli.app, ["optimize", "made_here:llama", "-o", str(out)])
    assert again.exit_code == 2
    assert "exists and is not empty" in again.stderr
    picture = tmp_path / "picture" / "net.onnx"
    result = CliRunner().invoke(cli.app, ["optimize", "made_here:picture", "-o", str(picture), *ARGUMENTS])
    assert result.exit_code == 0, result.output
    assert picture.is_file()


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--opset", "12"], "opset 12 is not supported"),
        (["--budget", "2"], "budget=2.0 is out of range"),
        (["--coarse", "5"], "give 4, 8 or none"),
        (["--levels", "layers"], "did you mean 'layer'"),
        (["--profile", "nowhere.srr"], "no profile at nowhere.srr"),
        (["--precision", "int3"], "no precision 'int3'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["optimize", "made_here:llama", "-o", str(out), *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.usefixtures("factory")
def test_drift_is_exit_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise DriftError("too much")

    monkeypatch.setattr(door, "optimize", refuse)
    result = CliRunner().invoke(cli.app, ["optimize", "made_here:llama", "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.strip() == "srrc: too much"


def test_an_encoder_decoder_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="becomes 2 files"):
        srrc.optimize(families.tiny("t5").model, tmp_path / "one.onnx", settings=QUICK)
