"""The command line: what it prints, and one line with exit code 2 for everything that cannot be done."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from srrc import cli, models_zoo
from srrc.models_zoo import families


class Words:
    """A tokenizer of the simplest kind: a character is its own id."""

    chat_template = None

    def __call__(self, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[ord(letter) % 256 for letter in text]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(*arguments: str) -> str:
    """The one line on standard error of a command that must end with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("srrc: ")
    return line


@pytest.fixture
def tiny_llama(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name under which a tiny model with a tokenizer loads."""

    def load(name: str, *, dtype: torch.dtype | None = None) -> tuple[nn.Module, Any]:
        return families.tiny("llama").model.to(dtype=dtype), Words()

    monkeypatch.setattr(models_zoo, "load", load)
    return "tiny"


def test_generate_prints_the_text_and_keeps_figures_off_standard_output(tiny_llama: str) -> None:
    result = run("generate", tiny_llama, "--prompt", "hello", "--backend", "eager", "--max-new-tokens", "5")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) == 5
    assert "tokens/s" in result.stderr


def test_generate_json_is_one_value_with_no_drift_from_itself(tiny_llama: str) -> None:
    arguments = ("generate", tiny_llama, "--prompt", "hello", "--backend", "eager", "--json")
    value = json.loads(run(*arguments, "--max-new-tokens", "5").stdout)
    assert len(value["tokens"]) == 5
    assert value["decode_tokens_per_s"] > 0
    assert abs(value["kl"]) < 1e-6
    assert value["flops_per_token"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "0"), "budget=0"),
        (("--budget", "-1"), "budget=-1"),
        (("--budget", "nan"), "budget=nan"),
        (("--budget", "half"), "budget='half' is neither"),
        (("--max-drift", "-0.1"), "max_drift=-0.1"),
        (("--budget", "0.5"), "profile"),
        (("--budget", "0.5", "--profile", "missing.srr"), "no profile at missing.srr"),
        (("--dtype", "float8"), "no dtype 'float8'"),
        (("--backend", "tpu"), "no backend 'tpu'"),
        (("--backend", "eager", "--budget", "1.0"), "takes no budget"),
        (("--prompt", "  "), "the prompt is empty"),
    ],
)
def test_generate_refuses_bad_input(tiny_llama: str, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("generate", tiny_llama, *arguments)


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_a_model_that_does_not_exist(command: str) -> None:
    assert "did you mean 'smollm2-135m'" in refused(command, "smollm2-135")


def test_a_model_that_writes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_zoo, "load", lambda *_, **__: (families.tiny("bert").model, Words()))
    assert "writes no text" in refused("generate", "bert", "--backend", "eager")


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_a_model_without_a_tokenizer(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(models_zoo, "load", lambda *_, **__: (families.tiny("llama").model, None))
    assert "without a tokenizer" in refused(command, "llama")


def test_calibrate_refuses_before_it_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_zoo, "load", lambda *_, **__: pytest.fail("loaded"))
    nowhere = str(tmp_path / "none" / "x.srr")
    assert "there is no folder" in refused("calibrate", "x", "-o", nowhere)
    out = ("-o", str(tmp_path / "x.srr"))
    assert "no domain 'poetry'" in refused("calibrate", "x", *out, "--domain", "poetry")
    assert "cannot read" in refused("calibrate", "x", *out, "--text", str(tmp_path / "missing.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    assert "as text" in refused("calibrate", "x", *out, "--text", str(tmp_path / "binary"))


def test_calibrate_writes_what_the_library_measured(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        gates = ("a", "b")

        def save(self, path: Path) -> None:
            path.write_text("profile")

    seen: list[list[str]] = []
    monkeypatch.setattr(
        "srrc.calibrate", lambda _m, _t, texts, **_: seen.append(texts) or Made(), raising=False
    )
    (tmp_path / "text").write_text("some text")
    out = tmp_path / "x.srr"
    result = run("calibrate", tiny_llama, "-o", str(out), "--text", str(tmp_path / "text"), "--json")
    assert json.loads(result.stdout) == {"profile": str(out), "gates": 2}
    assert seen == [["some text"]]
    assert out.read_text() == "profile"


def test_explain_prints_a_table_or_its_rows(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Explanation:
        rows: tuple[str, ...] = ("a row",)

        def __str__(self) -> str:
            return "a table"

    monkeypatch.setattr("srrc.bench.generation.run_once", lambda *_: None)
    monkeypatch.setattr("srrc.explain", lambda _: Explanation(), raising=False)
    assert run("explain", tiny_llama).stdout == "a table\n"
    assert json.loads(run("explain", tiny_llama, "--json").stdout) == {"rows": ["a row"]}


def test_cache_shows_and_clears_but_keeps_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRRC_CACHE_DIR", str(tmp_path))
    for room in ("zoo", "kernels"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "file").write_bytes(bytes(1000))
    assert json.loads(run("cache", "--json").stdout)["bytes"] == {"kernels": 1000, "zoo": 1000}
    assert "kernels" in run("cache").stdout
    assert run("cache", "--clear").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]
    assert run("cache", "--clear", "--models").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_cache_of_a_folder_that_does_not_exist_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRRC_CACHE_DIR", str(tmp_path / "none"))
    assert json.loads(run("cache", "--json").stdout) == {"folder": str(tmp_path / "none"), "bytes": {}}


def test_python_dash_m_lists_every_command_without_importing_torch() -> None:
    code = "import sys, srrc.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    listed = subprocess.run(
        [sys.executable, "-m", "srrc", "--help"], check=True, capture_output=True, text=True
    )
    for command in ("calibrate", "explain", "bench", "generate", "cache", "optimize"):
        assert command in listed.stdout
