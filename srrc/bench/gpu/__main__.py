"""Check every kernel on the GPU that is here, and measure it: `python -m srrc.bench.gpu [--json FILE] [--only NAME]`.

Needs torch (2.11 or later), Triton and the repository, nothing else. What fails is told and counted; the rest goes on.
"""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import triton

from srrc.bench import gpu
from srrc.bench.gpu import timing
from srrc.bench.gpu.record import Ceilings, Check, Measurement, Skipped
from srrc.bench.gpu.timing import milliseconds
from srrc.paths import CACHE_VARIABLE


def ceilings() -> Ceilings:
    """What is reached by whichever moves more of a copy and a sum over 1 GiB, and by a large bf16 product."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    scaled = 2 * size / milliseconds([lambda: torch.mul(source, 1.5, out=target)])
    summed = size / milliseconds([source.sum])
    a, b = torch.randn(2, 8192, 8192, device="cuda").to(torch.bfloat16).unbind()
    product = milliseconds([lambda: a @ b])
    return Ceilings(1e3 * max(scaled, summed), 1e3 * 2 * 8192**3 / product)


def cases() -> list[Any]:
    """The modules that have `checks` and `measurements`; decoding comes last."""
    names = sorted(m.name for m in pkgutil.iter_modules(gpu.__path__))
    modules = [importlib.import_module(f"{gpu.__name__}.{name}") for name in names if name != "__main__"]
    return sorted((m for m in modules if hasattr(m, "checks")), key=lambda m: m.NAME == "decode")


def warm(names: list[str]) -> None:
    """Compile for every case at once, in a process each: one after the other takes most of the run."""
    command = [sys.executable, "-m", "srrc.bench.gpu", "--warm", "--only"]
    running = [
        subprocess.Popen([*command, name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in names
    ]
    for process in running:
        process.wait()  # what fails here fails below, where it is told


def say(text: str) -> None:
    """At once: a run that is cut off has told what it found."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def told(check: Check) -> str:
    """A line about a check."""
    verdict = "ok" if check.passed else "WRONG"
    return f"{verdict:<6} {check.kernel}: {check.case}: {check.error:.2g} of {check.allowed:.2g}"


def measured(found: Measurement, limits: Ceilings) -> str:
    """A line about a measurement."""
    others = ", ".join(f"{name} {ms:.4f} ({ms / found.ms:.2f}x)" for name, ms in found.others.items())
    share = f"{found.of_ceiling(limits):.0%} of the ceiling"
    return f"       {found.kernel}: {found.case}: {found.ms:.4f} ms, {share}; {others} {found.config}"


def main(arguments: list[str]) -> int:
    """Run; 1 if a check failed or a case broke."""
    parser = argparse.ArgumentParser(prog="python -m srrc.bench.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything that was found to this file")
    parser.add_argument("--only", action="append", help="a kernel's name; may be given again")
    parser.add_argument("--checks", action="store_true", help="measure nothing")
    parser.add_argument("--warm", action="store_true", help="compile everything, and tell nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        say("no GPU that torch can use")
        return 2
    began = time.monotonic()
    os.environ[CACHE_VARIABLE] = os.devnull  # what was measured on this card before is to change nothing
    chosen = [case for case in cases() if not options.only or case.NAME in options.only]
    if options.warm:
        timing.MODE.warming = True
        for case in chosen:
            _ = [*case.checks(), *case.measurements()]
        return 0
    if not options.checks:
        warm([case.NAME for case in chosen])
        say(f"compiled in {time.monotonic() - began:.0f} s")
    limits = ceilings()
    card = torch.cuda.get_device_name()
    say(
        f"{card}, torch {torch.__version__}, triton {triton.__version__}:"
        f" copies {limits.bandwidth / 1e12:.2f} TB/s, products {limits.compute / 1e12:.0f} TFLOP/s"
    )
    checks: list[Check] = []
    measurements: list[Measurement] = []
    broken: list[str] = []
    for case in chosen:
        started = time.monotonic()
        try:
            for check in case.checks():
                checks.append(check)
                if not check.passed:
                    say(told(check))
            for measurement in () if options.checks else case.measurements():
                measurements.append(measurement)
                say(measured(measurement, limits))
        except Skipped as why:
            say(f"skipped {case.NAME}: {why}")
        except Exception:  # noqa: BLE001 (one kernel that breaks must not hide the others)
            broken.append(case.NAME)
            say(f"BROKEN {case.NAME}: {traceback.format_exc(limit=-6)}")
        torch.cuda.empty_cache()
        say(
            f"{case.NAME}: {sum(c.kernel == case.NAME for c in checks)} checks, {time.monotonic() - started:.0f} s"
        )
    wrong = sum(not c.passed for c in checks)
    say(f"{len(checks)} checks, {wrong} wrong; {len(broken)} broken; {time.monotonic() - began:.0f} s")
    if options.json:
        found = {
            "card": card,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "bandwidth": limits.bandwidth,
            "compute": limits.compute,
            "checks": [{**vars(c), "passed": c.passed} for c in checks],
            "measurements": [m.as_dict(limits) for m in measurements],
            "broken": broken,
        }
        options.json.write_text(json.dumps(found, indent=1))
    return int(bool(wrong or broken))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
