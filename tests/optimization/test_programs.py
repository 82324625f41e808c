"""The programs of docs/onnx.md run files that `srrc.optimize` wrote: eager's tokens without gates, others with them."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import srrc
from srrc.backends.onnx.decoding import greedy
from srrc.backends.onnx.session import Session
from srrc.optimization.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text()
PROMPT, COUNT = [5, 99, 17, 4, 31], 12


def program(kind: str) -> str:
    (code,) = re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


FILES = ["model", "model-0.8", "model-1"]
"""The plan's file, a variant with gates, and the one without any."""


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, letters: Any, let_gates_pay: Any, lively: Any
) -> dict[str, Path]:
    """File -> a folder with it as `model.onnx`, as GenAI wants it."""
    torch._dynamo.reset()
    place = tmp_path_factory.mktemp("written")
    quick = Settings(prompts=1, new_tokens=2, heldout_tokens=256, rounds=1, prefill=16, past=8, budget=0.3)
    with pytest.MonkeyPatch.context() as patch:
        let_gates_pay(patch)
        settings = dataclasses.replace(quick, variants=(1.0, 0.8))
        srrc.optimize(lively("llama", by=4.0), place / "out", tokenizer=letters, settings=settings)
    for name in FILES:
        shutil.copytree(place / "out", place / name)
        shutil.copy(place / "out" / f"{name}.onnx", place / name / "model.onnx")
    return {name: place / name for name in FILES}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path], lively: Any) -> dict[str, list[int]]:
    """File -> the tokens that it writes: eager's, or with gates those of our own loop."""
    session = Session(folders["model-1"] / "model.onnx")
    example = {name: torch.zeros(1, 2, 0, 16) for name in session.inputs}
    found = {
        name: greedy(Session(folder / "model.onnx").run, example, PROMPT, COUNT)
        for name, folder in folders.items()
    }
    found["model-1"] = eager_tokens(lively("llama", by=4.0))
    assert len(set(found["model-1"])) > 3
    assert found["model"] != found["model-1"], "the gates change nothing"
    return found


def eager_tokens(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        written = model.generate(
            ids,
            max_new_tokens=COUNT,
            min_new_tokens=COUNT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token) for token in written[0, len(PROMPT) :]]


def run(*command: str, cwd: Path | None = None) -> list[int]:
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)
    assert found.returncode == 0, found.stderr
    return [int(token) for token in json.loads(found.stdout.strip().splitlines()[-1])]


@pytest.mark.parametrize("kind", ["python onnxruntime", "python onnxruntime-genai"])
@pytest.mark.parametrize("file", FILES)
def test_python(
    kind: str, file: str, folders: dict[str, Path], expected: dict[str, list[int]], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(program(kind))
    asked = str(folders[file]), json.dumps(PROMPT), str(COUNT)
    assert run(sys.executable, str(tmp_path / "program.py"), *asked) == expected[file]


def test_javascript(folders: dict[str, Path], expected: dict[str, list[int]], tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no node here")
    (command,) = re.findall(r"`(npm install [^`]+)`", PAGE)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    installed = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "program.mjs").write_text(program("javascript"))
    for file, folder in folders.items():
        written = run("node", "program.mjs", str(folder), json.dumps(PROMPT), str(COUNT), cwd=tmp_path)
        assert written == expected[file], file
