"""Machines that lack something: the model runs all the same, with one line that says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, warnings
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
x = torch.randn(3, 8)
compiled = torch.compile(model, backend="srr", options={"strict": "strict" in sys.argv})
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    torch.testing.assert_close(compiled(x), model(x))
import srrc
from srrc.errors import SrrWarning
for w in caught:
    if issubclass(w.category, SrrWarning):
        print("WARNING", str(w.message).replace(chr(10), " "))
compiled(x).sum().backward()
print("FALLBACKS", srrc.stats(compiled)["fallbacks"])
"""


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "CXX"} | environment
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _without_compiler(tmp_path: Path) -> dict[str, str]:
    caches = {"SRRC_CACHE_DIR": str(tmp_path / "srrc"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    return {"PATH": str(tmp_path)} | caches


def test_without_a_compiler_the_model_runs(tmp_path: Path) -> None:
    done = _run(**_without_compiler(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler works here" in done.stdout
    assert "FALLBACKS {'" in done.stdout


def test_without_a_compiler_strict_says_so(tmp_path: Path) -> None:
    done = _run("strict", **_without_compiler(tmp_path))
    assert done.returncode == 1
    assert "StrictError" in done.stderr
    assert "compiler" in done.stderr.lower()


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = _run(SRRC_CACHE_DIR=str(file / "srrc"))
    assert done.returncode == 0, done.stderr
    assert "SRRC_CACHE_DIR" in done.stdout
    assert "FALLBACKS {}" in done.stdout
