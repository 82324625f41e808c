"""The output folder: filled under another name beside it, and put in its place by one rename."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from srrc.errors import CacheError, OptionError


def target_of(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """(folder, name of the model's file without ".onnx"): a path that ends in ".onnx" names the file itself."""
    given = Path(path)
    return (given.parent, given.stem) if given.suffix == ".onnx" else (given, None)


@contextlib.contextmanager
def filled(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill. It becomes `target` where the block ends well, and is gone where it does not.

    Raises OptionError where `target` is a file, or a folder with something in it and not to be replaced; CacheError
    where it cannot be written.
    """
    check_target(target, overwrite=overwrite)
    target = Path(os.path.abspath(target))  # noqa: PTH100  (no link is followed)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise CacheError(f"cannot write {target}: {error.strerror}") from error
    try:
        try:
            yield made
            made.chmod(0o755)
            _put_in_place(made, target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise CacheError(f"no space is left on the disk of {target}; nothing was written") from error
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises OptionError where `target` must not be written."""
    if target.exists() and not target.is_dir():
        raise OptionError(f"{target} is a file; give the name of a folder, or of a file that ends in .onnx")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OptionError(f"{target} exists and is not empty; give another folder, or --overwrite")


def _put_in_place(made: Path, target: Path) -> None:
    """Rename; what was there is moved aside first and removed last."""
    if not target.exists():
        made.rename(target)
        return
    aside = made.with_name(f"{made.name}-old")
    target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
