"""Builds the native kernels on first use, keeps them in the user's cache, and loads them.

A library in the cache is `NAME-KEY.so` beside `NAME-KEY.sha256`, its digest: both are written to temporary
names and renamed, the digest last, so that what a killed process or a full disk leaves behind is never
loaded. Where the cache cannot be written the libraries are built in a private folder for this process.
Where nothing can be built, `ensure_built()` is False and the reference ops run.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import filelock
import torch

import srrc.ops  # noqa: F401 (the schemas must stand before the kernels register for them)
from srrc.backends.cpu import toolchain
from srrc.backends.cpu.toolchain import CAPABILITIES, Recipe
from srrc.errors import BuildError, SrrWarning
from srrc.paths import CACHE_VARIABLE, cache_root
from srrc.reasons import Reason, Refusal

LOCK_SECONDS = 2 * toolchain.COMPILER_SECONDS


@dataclass
class _State:
    """What this process has loaded. Guarded by `_lock`."""

    built: bool | None = None
    refusal: Refusal | None = None
    capability: str | None = None
    ops: ctypes.CDLL | None = None
    kernels: ctypes.CDLL | None = None


_lock = threading.RLock()
_state = _State()


def cache_folder() -> Path:
    """Where built libraries are kept."""
    return cache_root() / "native"


def ensure_built() -> bool:
    """Build (or find) and load the native kernels once for this process; True if they serve the srr ops.

    Safe to call from several threads and often. False, after one SrrWarning that says why, where no
    compiler works: see `refusal()`. Takes about 10 s on the first use on a machine, milliseconds
    afterwards.
    """
    if _state.built is not None:
        return _state.built
    with _lock:
        if _state.built is None:
            _state.refusal = _load(asked_capability())
            _state.built = _state.refusal is None
            if _state.refusal is not None:
                refused = _state.refusal
                warnings.warn(
                    f"srr runs its reference ops: {refused.reason} ({refused.detail})", SrrWarning, 2
                )
    return bool(_state.built)


def refusal() -> Refusal | None:
    """Why `ensure_built()` is False, or None."""
    return _state.refusal


def capability() -> str | None:
    """The instruction set of the kernels in use ("portable", "avx2", "avx512"), or None if none is loaded."""
    return _state.capability


def asked_capability() -> str:
    """The machine's own, or the lower one that $SRRC_CPU_CAPABILITY asks for."""
    best = toolchain.detect_capability()
    asked = os.environ.get("SRRC_CPU_CAPABILITY")
    if not asked:
        return best
    able = list(CAPABILITIES)[: list(CAPABILITIES).index(best) + 1]
    if asked not in able:
        warnings.warn(
            f"SRRC_CPU_CAPABILITY={asked!r} is not one of {', '.join(able)}: using {best}",
            SrrWarning,
            stacklevel=3,
        )
        return best
    return asked


def use_capability(name: str) -> None:
    """Switch this process to the kernels of another instruction set (tests do).

    BuildError if they cannot be built, or if this machine would not run them.
    """
    best = toolchain.detect_capability()
    if not set(CAPABILITIES[name].flags) <= set(CAPABILITIES[best].flags):
        raise BuildError(f"this machine runs {best} kernels, and no {name} ones")
    if not ensure_built() or _state.ops is None:
        raise BuildError(f"no native kernels to switch to {name}: {_state.refusal}")
    compiler = toolchain.find_compiler()
    if compiler is None:
        raise BuildError(f"no C++ compiler for the {name} kernels")
    with _lock:
        (path,) = obtain([toolchain.kernels_recipe(compiler, name)])
        _use_kernels(_state.ops, path)
        _state.capability = name


def reader() -> Callable[[ctypes.c_void_p, ctypes.c_int64], float]:
    """The fastest reader of memory there is, for benches to compare with: (address, floats) -> sum."""
    if _state.kernels is None:
        raise BuildError(f"no native kernels: {_state.refusal}")
    read = _state.kernels.srr_read
    read.restype = ctypes.c_float
    read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return read


def _load(name: str) -> Refusal | None:
    compiler = toolchain.find_compiler()
    if os.name != "posix" or compiler is None:
        return Refusal("native kernels", "cpu", Reason.NO_COMPILER, "set CXX, or put g++ or clang++ on PATH")
    try:
        kernels, ops = obtain([toolchain.kernels_recipe(compiler, name), toolchain.ops_recipe(compiler)])
        torch.ops.load_library(str(ops))  # type: ignore[no-untyped-call]
        _state.ops = ctypes.CDLL(str(ops))
        _use_kernels(_state.ops, kernels)
    except (BuildError, OSError) as error:
        return Refusal("native kernels", "cpu", Reason.NO_COMPILER, str(error))
    _state.capability = name
    return None


def _use_kernels(ops: ctypes.CDLL, path: Path) -> None:
    _state.kernels = ctypes.CDLL(str(path))
    table = _state.kernels.srr_kernels
    table.restype = ctypes.c_void_p
    ops.srr_use_table.argtypes = [ctypes.c_void_p]
    ops.srr_use_table.restype = None
    ops.srr_use_table(table())


def obtain(recipes: list[Recipe]) -> list[Path]:
    """The libraries of `recipes`: from the cache, or built into it, or built for this process alone."""
    folder = cache_folder()
    if all(intact(folder / r.file_name) for r in recipes):
        return [folder / r.file_name for r in recipes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "build.lock", timeout=LOCK_SECONDS):
            return _build_all(recipes, folder)
    except (OSError, filelock.Timeout) as error:
        private = Path(tempfile.mkdtemp(prefix="srrc-native-"))
        warnings.warn(
            f"srrc cannot keep its kernels in {folder} ({error}): building them for this process only;"
            f" set {CACHE_VARIABLE} to a folder that can be written",
            SrrWarning,
            stacklevel=4,
        )
        return _build_all(recipes, private)


def _build_all(recipes: list[Recipe], folder: Path) -> list[Path]:
    missing = [r for r in recipes if not intact(folder / r.file_name)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda recipe: _build(recipe, folder), missing))
    return [folder / r.file_name for r in recipes]


def _build(recipe: Recipe, folder: Path) -> None:
    """Build one library and its digest under temporary names, then rename.

    OSError if `folder` cannot hold them.
    """
    target = folder / recipe.file_name
    with _scratch(folder) as scratch:
        made = scratch / "library.so"
        try:
            toolchain.compile_to(recipe, made)
        except BuildError as error:
            if "No space left" in str(error) or shutil.disk_usage(folder).free < 1 << 20:
                raise OSError(str(error)) from error
            raise
        digest = scratch / "digest"
        digest.write_text(_digest(made))
        made.replace(target)
        digest.replace(target.with_suffix(".sha256"))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def intact(library: Path) -> bool:
    """Whether a library in the cache is whole: it has the digest that was written after it."""
    try:
        return library.with_suffix(".sha256").read_text() == _digest(library)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
