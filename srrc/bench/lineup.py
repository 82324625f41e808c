"""The processes of one run: started together, asked one at a time, and left out once they fail."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from srrc.errors import SrrError

PATIENCE = 3600.0
"""Seconds that an answer may take: a cold compilation of a large model takes many minutes."""


class WorkerError(SrrError, RuntimeError):
    """A process that died, or could not do what it was asked."""


class Worker:
    """A `srrc.bench.worker`. Its log lies in `folder`, which exists; with `cold`, so do its caches."""

    def __init__(self, folder: Path, threads: int, *, cold: bool) -> None:
        self._log = folder / "log"
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(threads)
        if cold:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "srrc.bench.worker", *([str(folder / "srrc")] if cold else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def send(self, do: str, **arguments: Any) -> None:
        """Ask for something; `receive` gives the answer. Raises WorkerError where nobody listens any more."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._death()) from None

    def receive(self, patience: float = PATIENCE) -> Any:
        """The answer to what was sent.

        Raises WorkerError for a failure, a death, or no answer in `patience` seconds.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            self._process.kill()
            raise WorkerError(f"no answer in {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._death())
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["ok"]

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send, and receive."""
        self.send(do, **arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _death(self) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "the process closed its output"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the process died ({how})" + (f": {lines[-1].strip()}" if lines else "")


class Lineup:
    """Workers by name. `failed` says of each that was left out why."""

    def __init__(self, names: Iterable[str], folder: Path, threads: int, *, cold: bool) -> None:
        self.failed: dict[str, str] = {}
        self._folder, self._threads, self._cold = folder, threads, cold
        self._workers = {name: self._made(name) for name in dict.fromkeys(names)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._workers):
            self.close(name)

    @property
    def names(self) -> list[str]:
        """Those that still answer."""
        return list(self._workers)

    def ask(self, name: str, do: str, **arguments: Any) -> Any | None:
        """The answer, or None where the worker failed now or before."""
        worker = self._workers.get(name)
        if worker is None:
            return None
        try:
            return worker.ask(do, **arguments)
        except WorkerError as error:
            self.failed[name] = " ".join(str(error).split())
            self.close(name)
            return None

    def ask_all(
        self, do: str, arguments: Callable[[str], Mapping[str, Any]] = lambda name: {}
    ) -> dict[str, Any]:
        """Ask all at once, each with the arguments of its name; the answers by name."""
        for name, worker in self._workers.items():
            try:
                worker.send(do, **arguments(name))
            except WorkerError:
                continue  # receive will say it
        found = {}
        for name, worker in list(self._workers.items()):
            try:
                found[name] = worker.receive()
            except WorkerError as error:
                self.failed[name] = " ".join(str(error).split())
                self.close(name)
        return found

    def restart(self, name: str) -> None:
        """Put a new process in the place of one, on the same caches."""
        self.close(name)
        self._workers[name] = self._made(name)

    def close(self, name: str) -> None:
        """End one process."""
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()

    def _made(self, name: str) -> Worker:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return Worker(folder, self._threads, cold=self._cold)
