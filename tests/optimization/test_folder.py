"""The output folder: whole or not at all, and nothing lost that was there."""

import errno
from pathlib import Path

import pytest

from srrc.errors import CacheError, OptionError
from srrc.optimization.folder import check_target, filled, target_of


def test_a_path_names_a_folder_or_a_file_in_one() -> None:
    assert target_of("out") == (Path("out"), None)
    assert target_of("out/model_v2.onnx") == (Path("out"), "model_v2")


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out"
    with filled(target, overwrite=False) as made:
        (made / "model.onnx").write_text("x")
        assert not target.exists()
    assert (target / "model.onnx").read_text() == "x"
    assert [each.name for each in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")

    def fail() -> None:
        with filled(target, overwrite=True) as made:
            (made / "new").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "old"]


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with filled(target, overwrite=False) as made:
        (made / "first").touch()
    with pytest.raises(OptionError, match="exists and is not empty"):
        check_target(target, overwrite=False)
    with filled(target, overwrite=True) as made:
        (made / "second").touch()
    assert [each.name for each in target.iterdir()] == ["second"]
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled_and_a_file_may_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with filled(tmp_path / "empty", overwrite=False) as made:
        (made / "model.onnx").touch()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file"):
        check_target(tmp_path / "file", overwrite=True)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with filled(tmp_path / "out", overwrite=False):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match="no space is left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot write"), filled(tmp_path / "file" / "out", overwrite=False):
        pass
