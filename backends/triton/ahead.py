"""Compiles kernels ahead of time, for a card that need not be here, and reads what the compiler says of them.

    python -m srrc.backends.triton.ahead sm_80 sm_90 gfx942 --only sparse_linear     one JSON object a line

Each module of `kernels/` lists in `AHEAD` the specialisations that are compiled here: what a launcher would ask for.
"""

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from srrc.backends.triton.shared_memory import LEAST


@dataclass(frozen=True)
class Target:
    """A card to compile for, and the bytes of shared memory that a program may have there."""

    gpu: GPUTarget
    room: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 166_912),
    "sm_89": Target(GPUTarget("cuda", 89, 32), LEAST),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 232_448),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 65_536),
}
"""By name: A100; L4 and 4090, and as for them 3090, A10 and 5090; H100 and H200; MI300."""


@dataclass(frozen=True)
class Ahead:
    """A specialisation of a kernel.

    kernel:    the function under `triton.jit`
    signature: Triton's type of each argument that is no constant, "*bf16" or "i32"; a pointer is taken to be aligned
               to 16 bytes, and an "i32:16" to be a multiple of 16, as launches specialise them
    constants: the values of the others
    room:      bytes of shared memory; where a program may have less, a launcher would ask for something else
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    room: int = 0


@dataclass(frozen=True)
class Assembled:
    """What a compiler made: registers a thread, spilled bytes (NVIDIA) or registers (AMD), bytes of shared memory."""

    name: str
    target: str
    registers: int
    spills: int
    shared: int


def specialisations() -> Iterator[Ahead]:
    """What the modules of `kernels/` list, module by module."""
    package = importlib.import_module("srrc.backends.triton.kernels")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        yield from importlib.import_module(f"{package.__name__}.{module}").AHEAD


def assemble(ahead: Ahead, target: str) -> Assembled:
    """Compile for a target of `TARGETS`, and read. Raises what Triton raises where a kernel does not compile."""
    compiled = build(ahead, target)
    shared = compiled.metadata.shared
    if target.startswith("sm_"):
        return Assembled(ahead.name, target, *_ptxas(compiled.asm["ptx"]), shared)
    text = compiled.asm["amdgcn"]
    spills = _number(r"\.vgpr_spill_count:\s*(\d+)", text) + _number(r"\.sgpr_spill_count:\s*(\d+)", text)
    return Assembled(ahead.name, target, _number(r"\.vgpr_count:\s*(\d+)", text), spills, shared)


def build(ahead: Ahead, target: str) -> Any:
    """Triton's compiled kernel: `asm` by stage ("ttir", "ptx", "amdgcn"), and `metadata`."""
    attributes = {}
    signature = {}
    for i, name in enumerate(ahead.kernel.arg_names):
        kind = ahead.signature.get(name, "constexpr")
        signature[name] = kind.removesuffix(":16")
        if kind.startswith("*") or kind.endswith(":16"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {(ahead.kernel.arg_names.index(name),): value for name, value in ahead.constants.items()}
    source = ASTSource(ahead.kernel, signature, constants, attributes)
    options = {"num_warps": ahead.num_warps, "num_stages": ahead.num_stages}
    return triton.compile(source, target=TARGETS[target].gpu, options=options)


def _ptxas(ptx: str) -> tuple[int, int]:
    """(registers a thread, bytes spilled) as ptxas reports them."""
    name = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    assert name is not None, "PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(int(name[2])).path,
            "-v",
            f"--gpu-name={name[1]}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(f"ptxas: {ran.stderr.strip()}")
    said = ran.stdout + ran.stderr
    return _number(r"Used (\d+) registers", said), _number(r"(\d+) bytes spill stores", said)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return 0 if found is None else int(found[1])


def main(arguments: list[str]) -> None:
    """Compile every specialisation for the targets named, or for all, where it has room; print what came of each."""
    parser = argparse.ArgumentParser(prog="python -m srrc.backends.triton.ahead", description=main.__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--only", default="", help="how names begin")
    options = parser.parse_args(arguments)
    for ahead in specialisations():
        for target in options.targets or TARGETS if ahead.name.startswith(options.only) else ():
            if ahead.room <= TARGETS[target].room:
                sys.stdout.write(json.dumps(asdict(assemble(ahead, target))) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
