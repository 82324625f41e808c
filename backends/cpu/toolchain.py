"""The C++ compiler of this machine, and the two libraries that it makes for srrc.

`ops` holds the bindings (torch's headers, no machine flags); `kernels` holds the loops, compiled for one
instruction set. They are separate so that the slow headers are compiled once, and so that a machine builds
only what it can run.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from srrc.errors import BuildError

SOURCES = Path(__file__).parent / "kernels"
COMPILER_SECONDS = 300


@dataclass(frozen=True)
class Capability:
    """An instruction set: the compiler's flags for it, and the bytes of its vectors."""

    flags: tuple[str, ...]
    vector_bytes: int


CAPABILITIES: dict[str, Capability] = {
    "portable": Capability((), 16),
    "avx2": Capability(("-mavx2", "-mfma"), 32),
    "avx512": Capability(("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"), 64),
}
"""Slowest first: each machine that has one has all before it."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the words that start it, and what it says of itself."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Recipe:
    """How to make one library. `key` is a hash of everything that decides what comes out."""

    name: str
    command: tuple[str, ...]
    key: str

    @property
    def file_name(self) -> str:
        """The library's name in the cache."""
        return f"{self.name}-{self.key}.so"


def find_compiler() -> Compiler | None:
    """$CXX, else c++, g++, clang++: the first that is on PATH and answers `--version`."""
    asked = os.environ.get("CXX", "")
    for words in ([shlex.split(asked)] if asked.strip() else []) + [["c++"], ["g++"], ["clang++"]]:
        path = shutil.which(words[0])
        if path is None:
            continue
        command = (path, *words[1:])
        try:
            said = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return Compiler(command, said.stdout)
    return None


def detect_capability() -> str:
    """The best instruction set that this machine and operating system run, as torch found it."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return "portable"
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in CAPABILITIES else "portable"


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in {".cpp", ".h"}:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:20]


def _shared() -> list[str]:
    linking = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return ["-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-w", *linking]


def kernels_recipe(compiler: Compiler, capability: str) -> Recipe:
    """The loops for one instruction set; nothing of torch in it."""
    chosen = CAPABILITIES[capability]
    flags = [
        *_shared(),
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        f"-DSRR_NS={capability}",
        f"-DSRR_BYTES={chosen.vector_bytes}",
        *chosen.flags,
    ]
    command = (*compiler.command, *flags, str(SOURCES / "isa.cpp"))
    return Recipe(f"srr-kernels-{capability}", command, _hash(compiler, flags, platform.machine()))


def ops_recipe(compiler: Compiler) -> Recipe:
    """The bindings, for this torch."""
    root = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    flags = [*_shared(), f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-fno-math-errno"]
    if sys.platform != "darwin":
        flags.append("-fopenmp")
    include = root / "include"
    paths = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    linking = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = (*compiler.command, *flags, *paths, str(SOURCES / "ops.cpp"), *linking)
    return Recipe("srr-ops", command, _hash(compiler, flags, torch.__version__, platform.machine()))


def compile_to(recipe: Recipe, target: Path) -> None:
    """Make `recipe` into the file `target`. BuildError with the compiler's first complaint if it fails."""
    try:
        done = subprocess.run(
            [*recipe.command, "-o", str(target)],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMPILER_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"cannot run {recipe.command[0]} to build {recipe.name}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        complaint = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise BuildError(f"{recipe.command[0]} cannot build {recipe.name}: {complaint}")
