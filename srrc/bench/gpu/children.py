"""Processes that have a case each, and a limit: one that dies, or waits for ever, takes nothing with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from srrc.bench.gpu.child import DONE

COMMAND = (sys.executable, "-m", "srrc.bench.gpu")

TAIL = 2000
"""Characters of what a process said last, where it died or warned of something."""


class Child:
    """A case's process. found, output: where it writes what it finds, and what it prints."""

    def __init__(self, name: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.name, self.done = name, False
        self.found, self.output = folder / f"{name}.jsonl", folder / f"{name}.txt"
        self.found.touch()
        command = [*COMMAND, "--child", name, "--into", str(self.found), *options]
        with self.output.open("wb") as output:
            # A group of its own, so that the compilers that it starts can be ended along with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )

    def lines(self, limit: float) -> Iterator[dict[str, Any]]:
        """What it finds, as it finds it; "broken" at last where it dies, or is killed after `limit` seconds."""
        began, at = time.monotonic(), 0
        with contextlib.closing(self), self.found.open(encoding="utf-8") as file:
            while not self.done:
                ended = self.process.poll() is not None  # before reading: what it wrote last is still read
                text = file.readline()
                if text.endswith("\n"):
                    at = file.tell()
                    line = json.loads(text)
                    self.done = line["kind"] == DONE
                    if not self.done:
                        yield line
                    continue
                file.seek(at)  # half a line is read again
                if ended:
                    yield self._broken(f"it ended with {self.process.returncode}")
                    return
                if time.monotonic() - began > limit:
                    yield self._broken(f"it was killed after {limit:.0f} s")
                    return
                time.sleep(0.02)

    def wait(self, until: float) -> bool:
        """Wait till `until`, of time.monotonic, and kill it then; whether it had ended by itself."""
        with contextlib.closing(self), contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))
            return True
        return False

    def said(self) -> str:
        """What it printed last."""
        return self.output.read_text(encoding="utf-8", errors="replace")[-TAIL:]

    def close(self) -> None:
        """End it, if it has not ended, and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _broken(self, why: str) -> dict[str, Any]:
        return {"kind": "broken", "what": f"{why}\n{self.said()}".strip()}


def warm(names: Sequence[str], folder: Path, options: Sequence[str], limit: float) -> list[str]:
    """Compile for every case at once, a process each: one after the other takes most of a run.

    Returns the cases that were not ready after `limit` seconds. What fails here fails again, where it is told.
    """
    children: list[Child] = []
    try:
        for name in names:
            children.append(Child(name, folder, [*options, "--warm"]))  # noqa: PERF401 (what was started is closed)
        until = time.monotonic() + limit
        return [child.name for child in children if not child.wait(until)]
    finally:
        for child in children:
            child.close()
