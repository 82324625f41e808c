"""All that a run found: told a line at a time, and written as JSON after each case."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srrc.bench.gpu.record import KINDS, Ceilings, Check, Measurement


@dataclass
class Report:
    """What is known so far.

    about:    the card, versions, the commit
    broken:   by case, what it said; it may have found something before
    skipped:  by case, why
    warned:   by case, what it printed last, where it warned of something
    seconds:  by case, what it took
    finished: whether every case had its turn, or was skipped when no time was left
    """

    about: Mapping[str, object]
    ceilings: Ceilings | None = None
    checks: list[Check] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    warned: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    def take(self, case: str, line: Mapping[str, Any]) -> str | None:
        """Take in what a case found (`child.py`); what to tell of it, if anything."""
        kind, what = line["kind"], line["what"]
        if kind == "broken":
            self.broken[case] = "\n".join(filter(None, (self.broken.get(case), what)))
            return f"BROKEN {case}: {what}"
        if kind == "skipped":
            self.skipped[case] = what
            return f"skipped {case}: {what}"
        found = KINDS[kind](**what)
        if isinstance(found, Check):
            self.checks.append(found)
            return None if found.passed else told(found)
        if isinstance(found, Measurement):
            self.measurements.append(found)
            return measured(found, self.ceilings)
        self.ceilings = found
        return f"copies {found.bandwidth / 1e12:.2f} TB/s, products {found.compute / 1e12:.0f} TFLOP/s"

    def heard(self, case: str, said: str) -> None:
        """Keep what a case printed, if it warned of anything."""
        if "warn" in said.lower():
            self.warned[case] = said

    @property
    def wrong(self) -> int:
        """Checks that failed."""
        return sum(not check.passed for check in self.checks)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        limits = self.ceilings
        return {
            **self.about,
            "bandwidth": None if limits is None else limits.bandwidth,
            "compute": None if limits is None else limits.compute,
            "finished": self.finished,
            "broken": self.broken,
            "skipped": self.skipped,
            "warned": self.warned,
            "seconds": self.seconds,
            "checks": [check.as_dict() for check in self.checks],
            "measurements": [measurement.as_dict(limits) for measurement in self.measurements],
        }

    def write(self, path: Path) -> None:
        """Put the whole of it there at once. Raises OSError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self.as_dict(), indent=1), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def say(text: str) -> None:
    """At once: a run that is cut off has told what it found."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def told(check: Check) -> str:
    """A line about a check."""
    verdict = "ok" if check.passed else "WRONG"
    return f"{verdict:<6} {check.kernel}: {check.case}: {check.error:.2g} of {check.allowed:.2g}"


def measured(found: Measurement, limits: Ceilings | None) -> str:
    """A line about a measurement."""
    others = ", ".join(f"{name} {ms:.4f} ({ms / found.ms:.2f}x)" for name, ms in found.others.items())
    share = "" if limits is None else f", {found.of_ceiling(limits):.0%} of the ceiling"
    missing = "".join(f"; no {name}: {' '.join(why.split())}" for name, why in found.missing.items())
    return f"       {found.kernel}: {found.case}: {found.ms:.4f} ms{share}; {others} {found.config}{missing}"


def commit() -> dict[str, object]:
    """The commit that lies here, and whether anything was changed since; nothing where git cannot tell."""
    try:
        head, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": head.strip(), "dirty": bool(changes.strip())}


def _git(*words: str) -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
