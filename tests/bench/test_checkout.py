"""A checkout where srrc is not installed: its modules are found, and nothing asks for what was not installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import srrc
from srrc.paths import CACHE_VARIABLE

ROOT = Path(__file__).parents[2]

ALONE = """
import sys
ROOT, ABSENT = sys.argv[1], {"rich", "typer", "platformdirs", "transformers"}


class Nothing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path[:] = [Nothing, *(each for each in sys.meta_path if "ditable" not in repr(each))]
sys.path[:] = [ROOT, *(each for each in sys.path if "ditable" not in each)]
import importlib.metadata as metadata
found = metadata.distribution


def distribution(name):
    if name == "srrc":
        raise metadata.PackageNotFoundError(name)
    return found(name)


metadata.distribution = distribution
"""


def alone(code: str, cache: Path) -> str:
    """What the code prints where the tree is all that there is of srrc."""
    command = [sys.executable, "-c", ALONE + code, str(ROOT)]
    variables = {**os.environ, CACHE_VARIABLE: str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_top_folders_are_packages_of_srrc(tmp_path: Path) -> None:
    code = "import srrc.backends.triton.card, srrc.passes; print(srrc.passes.__file__)"
    assert alone(code, tmp_path) == str(ROOT / "passes" / "__init__.py")


def test_another_checkout_that_is_installed_is_not_asked(tmp_path: Path) -> None:
    """Its packages would be taken for this tree's."""
    code = """
class Other:
    @staticmethod
    def find_spec(name, path=None, target=None):
        assert not name.startswith("srrc"), name


sys.meta_path.append(Other)
import srrc.backends.triton.card, srrc.passes
print(srrc.passes.__file__)
"""
    assert alone(code, tmp_path) == str(ROOT / "passes" / "__init__.py")


def test_calibrating_and_compiling_need_no_installation(tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
from srrc.backend import srr
from srrc.calibration import calibrate

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
profile = calibrate(model, batches=[torch.randn(1, 16, 64) for _ in range(3)], quick=True, progress=False)
with torch.no_grad():
    torch.compile(model, backend=srr, options={"budget": 0.9, "profile": profile, "strict": True})(torch.randn(1, 64))
print(len(profile.gates) > 0)
"""
    assert alone(code, tmp_path) == "True"


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert srrc.__version__ == project["version"]
