"""What pyproject.toml says about the tree is true."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {
    "srrc": "srrc",
    "passes": "srrc.passes",
    "backends": "srrc.backends",
    "models_zoo": "srrc.models_zoo",
}


def _settings() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return found


def test_every_package_in_the_tree_is_listed() -> None:
    found = set()
    for folder, package in ROOMS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert set(_settings()["packages"]) == found  # type: ignore[call-overload]


def test_each_room_is_mapped_to_its_package() -> None:
    assert _settings()["package-dir"] == {package: folder for folder, package in ROOMS.items()}


def test_torch_finds_the_backend_without_importing_srrc() -> None:
    (point,) = entry_points(group="torch_dynamo_backends", name="srr")
    assert point.value == "srrc.backend:srr"
