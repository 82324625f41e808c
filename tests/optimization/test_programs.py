"""The programs of docs/onnx.md run a file that `srrc.optimize` wrote, and write eager's tokens."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srrc
from srrc.models_zoo import families
from srrc.optimization.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text()
PROMPT, COUNT = [5, 99, 17, 4, 31], 12


def program(kind: str) -> str:
    (code,) = re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch._dynamo.reset()
    out = tmp_path_factory.mktemp("written") / "out"
    quick = Settings(prompts=1, new_tokens=2, heldout_tokens=256, rounds=1, prefill=16, past=8)
    srrc.optimize(families.tiny("llama").model, out, settings=quick)
    return out


@pytest.fixture(scope="module")
def expected() -> list[int]:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        written = families.tiny("llama").model.generate(
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
def test_python(kind: str, folder: Path, expected: list[int], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program(kind))
    written = run(sys.executable, str(tmp_path / "program.py"), str(folder), json.dumps(PROMPT), str(COUNT))
    assert written == expected


def test_javascript(folder: Path, expected: list[int], tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no node here")
    (command,) = re.findall(r"`(npm install [^`]+)`", PAGE)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    installed = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "program.mjs").write_text(program("javascript"))
    written = run("node", "program.mjs", str(folder), json.dumps(PROMPT), str(COUNT), cwd=tmp_path)
    assert written == expected
