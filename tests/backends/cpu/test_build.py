"""Building the native libraries: what is kept, what is rebuilt, and what happens where nothing can be built.

The compiler is a script here that writes a file in no time, wherever the library itself is not needed.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from srrc.backends.cpu import build, toolchain
from srrc.backends.cpu.toolchain import Compiler, Recipe
from srrc.errors import BuildError, SrrWarning
from srrc.paths import CACHE_VARIABLE

SCRIPT = """#!/bin/sh
[ "$1" = --version ] && echo "fake compiler 1.0" && exit 0
echo run >> "{log}"
sleep {seconds}
while [ "$1" != -o ]; do shift; done
{work}
"""
WRITES = 'echo "a library" > "$2"'
COMPLAINS = 'echo "kernel.h:1: error: it does not like it" >&2; exit 1'
NO_SPACE = 'echo "fatal error: error writing to x.o: No space left on device" >&2; exit 1'
WITHOUT_COMPILER = {"PATH": "/nonexistent", "CXX": ""}


class FakeCompiler:
    """A compiler on disk, and how often it ran."""

    def __init__(self, folder: Path, work: str = WRITES, seconds: float = 0) -> None:
        self.path, self.log = folder / "fake-c++", folder / "log"
        self.path.write_text(SCRIPT.format(log=self.log, work=work, seconds=seconds))
        self.path.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def recipes(self) -> list[Recipe]:
        compiler = Compiler((str(self.path),), "fake compiler 1.0")
        return [toolchain.kernels_recipe(compiler, "portable"), toolchain.ops_recipe(compiler)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder / "native"


def run(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=240,
    )


def test_libraries_are_built_once(tmp_path: Path, cache: Path) -> None:
    fake = FakeCompiler(tmp_path)
    first, second = build.obtain(fake.recipes()), build.obtain(fake.recipes())
    assert first == second
    assert all(path.parent == cache and path.read_text() == "a library\n" for path in first)
    assert fake.runs == 2
    assert {p.suffix for p in cache.iterdir()} == {".so", ".sha256", ".lock"}


@pytest.mark.parametrize("damage", ["truncated", "changed", "no digest", "half a digest"])
def test_a_damaged_library_is_rebuilt(tmp_path: Path, cache: Path, damage: str) -> None:
    fake = FakeCompiler(tmp_path)
    library, _ = build.obtain(fake.recipes())
    digest = library.with_suffix(".sha256")
    if damage == "truncated":
        library.write_bytes(b"")
    elif damage == "changed":
        library.write_text("b library\n")
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_text(digest.read_text()[:10])
    build.obtain(fake.recipes())
    assert library.read_text() == "a library\n"
    assert build.intact(library)
    assert fake.runs == 3


def test_what_a_killed_build_left_is_not_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCompiler(tmp_path)

    def killed(recipe: Recipe, target: Path) -> None:
        target.write_text("half a libr")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "compile_to", killed)
        with pytest.raises(KeyboardInterrupt):
            build.obtain(fake.recipes())
    assert not list(cache.glob("*.so"))
    assert all(path.read_text() == "a library\n" for path in build.obtain(fake.recipes()))


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    fake = FakeCompiler(tmp_path)
    with pytest.warns(SrrWarning, match=CACHE_VARIABLE):
        paths = build.obtain(fake.recipes())
    assert all(path.read_text() == "a library\n" for path in paths)
    assert all(tmp_path not in path.parents for path in paths)


def test_a_full_cache_is_replaced_by_a_private_folder(tmp_path: Path, cache: Path) -> None:
    full = f'case "$2" in "{cache}"/*) {NO_SPACE};; *) {WRITES};; esac'
    fake = FakeCompiler(tmp_path, work=full)
    with pytest.warns(SrrWarning, match="No space left"):
        paths = build.obtain(fake.recipes())
    assert all(path.read_text() == "a library\n" for path in paths)
    assert not list(cache.glob("*.so"))


def test_a_compiler_that_fails_says_why(tmp_path: Path, cache: Path) -> None:
    fake = FakeCompiler(tmp_path, work=COMPLAINS)
    with pytest.raises(BuildError, match=r"kernel\.h:1: error: it does not like it"):
        build.obtain(fake.recipes())


def test_two_processes_at_once_build_once(tmp_path: Path, cache: Path) -> None:
    fake = FakeCompiler(tmp_path, seconds=1)
    code = (
        "from srrc.backends.cpu import build, toolchain\n"
        f"compiler = toolchain.Compiler(({str(fake.path)!r},), 'fake compiler 1.0')\n"
        "recipes = [toolchain.kernels_recipe(compiler, 'portable'), toolchain.ops_recipe(compiler)]\n"
        "print([p.read_text() for p in build.obtain(recipes)])\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0].strip() for process in processes]
    assert outputs == [str(["a library\n"] * 2)] * 2
    assert fake.runs == 2


def test_the_key_holds_all_that_decides_what_comes_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = Compiler(("c++",), "1.0")
    ours = toolchain.ops_recipe(compiler).key
    assert toolchain.ops_recipe(compiler).key == ours
    assert toolchain.ops_recipe(Compiler(("c++",), "1.1")).key != ours
    assert toolchain.ops_recipe(Compiler(("g++",), "1.0")).key != ours
    keys = {toolchain.kernels_recipe(compiler, name).key for name in toolchain.CAPABILITIES}
    assert len(keys) == len(toolchain.CAPABILITIES)
    with monkeypatch.context() as patch:
        patch.setattr("torch.__version__", "0.0")
        assert toolchain.ops_recipe(compiler).key != ours
    sources = tmp_path / "kernels"
    sources.mkdir()
    for source in toolchain.SOURCES.iterdir():
        (sources / source.name).write_text(source.read_text() + ("\n" if source.suffix == ".h" else ""))
    monkeypatch.setattr(toolchain, "SOURCES", sources)
    assert toolchain.ops_recipe(compiler).key != ours


def test_without_a_compiler_the_references_run_after_one_warning(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from srrc.backends.cpu import build\n"
        "print(build.ensure_built(), build.ensure_built(), build.refusal().reason.name, build.capability())\n"
        "print(torch.ops.srr.dense_linear(torch.ones(1, 2), [torch.ones(3, 2)], [None])[0].tolist())\n"
    )
    done = run(code, {**WITHOUT_COMPILER, CACHE_VARIABLE: str(tmp_path)})
    assert done.stdout.splitlines() == ["False False NO_COMPILER None", "[[2.0, 2.0, 2.0]]"], done.stderr
    assert done.stderr.count("SrrWarning") == 1
    assert "set CXX" in done.stderr


def test_a_compiler_that_fails_is_a_refusal_with_its_complaint(tmp_path: Path) -> None:
    fake = FakeCompiler(tmp_path, work=COMPLAINS)
    code = "from srrc.backends.cpu import build; print(build.ensure_built(), build.refusal().detail)"
    done = run(code, {"CXX": str(fake.path), CACHE_VARIABLE: str(tmp_path / "cache")})
    assert done.stdout.startswith("False"), done.stderr
    assert "it does not like it" in done.stdout
    assert done.stderr.count("SrrWarning") == 1


def test_a_library_that_cannot_be_loaded_is_a_refusal(tmp_path: Path) -> None:
    fake = FakeCompiler(tmp_path)
    code = "from srrc.backends.cpu import build; print(build.ensure_built(), build.refusal().reason.name)"
    done = run(code, {"CXX": str(fake.path), CACHE_VARIABLE: str(tmp_path / "cache")})
    assert done.stdout.split() == ["False", "NO_COMPILER"], done.stderr


@pytest.mark.parametrize("asked", ["portable", None])
def test_the_instruction_set_can_be_lowered(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    monkeypatch.setattr(toolchain, "detect_capability", lambda: "avx2")
    monkeypatch.delenv("SRRC_CPU_CAPABILITY", raising=False)
    if asked:
        monkeypatch.setenv("SRRC_CPU_CAPABILITY", asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.asked_capability() == (asked or "avx2")


@pytest.mark.parametrize("asked", ["avx512", "sse9"])
def test_an_instruction_set_that_the_machine_lacks_is_not_used(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(toolchain, "detect_capability", lambda: "avx2")
    monkeypatch.setenv("SRRC_CPU_CAPABILITY", asked)
    with pytest.warns(SrrWarning, match="portable, avx2: using avx2"):
        assert build.asked_capability() == "avx2"


def test_kernels_that_would_kill_the_process_are_not_switched_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "detect_capability", lambda: "avx2")
    with pytest.raises(BuildError, match="no avx512"):
        build.use_capability("avx512")


def test_eight_threads_load_the_kernels_once() -> None:
    code = (
        "import threading, torch\n"
        "from srrc.backends.cpu import build\n"
        "loads, load = [], build._load\n"
        "build._load = lambda name: (loads.append(name), load(name))[1]\n"
        "found = []\n"
        "def work():\n"
        "    built = build.ensure_built()\n"
        "    x, w = torch.ones(1, 600), torch.ones(300, 600)\n"
        "    same = all(torch.ops.srr.dense_linear(x, [w], [None])[0].eq(600).all() for _ in range(200))\n"
        "    found.append((built, bool(same)))\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(len(loads), set(found))\n"
    )
    done = run(code, {})
    assert done.stdout.strip() == "1 {(True, True)}", done.stderr


def test_the_machines_own_compiler_can_make_the_avx512_kernels(tmp_path: Path) -> None:
    compiler = toolchain.find_compiler()
    if compiler is None or toolchain.detect_capability() == "portable":
        pytest.skip("no x86 compiler here")
    toolchain.compile_to(toolchain.kernels_recipe(compiler, "avx512"), tmp_path / "library.so")
    assert (tmp_path / "library.so").stat().st_size > 0
