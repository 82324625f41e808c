"""`python -m srrc.bench.worker`: one variant in a process of its own, asked over pipes.

Each line on standard input is a JSON object {"do": name, ...arguments}; the answer is one line on standard
output, {"ok": value} or {"error": line}. The end of the input ends the process. Nothing else reaches that
output: whatever prints goes to standard error.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from srrc.errors import SrrError
from srrc.paths import CACHE_VARIABLE


class Answers:
    """The requests a worker understands, each a method that returns something JSON can hold.

    cache: folder for what srrc compiles, in place of the user's
    """

    def __init__(self, cache: str | None) -> None:
        self._cache = cache
        self._session: Any = None

    def load(self, model: str, dtype: str, threads: int, cache_length: int, batch: int = 1) -> Any:
        """Load the model."""
        import torch

        from srrc.bench.memory import reset_peak, resident
        from srrc.bench.session import Session

        torch.set_num_threads(threads)
        self._session = Session(model, dtype, cache_length, batch)
        reset_peak()  # loading may hold the weights twice, whatever runs them later
        return {"weight_bytes": self._session.weight_bytes(), "resident_bytes": resident()}

    def compile(self, plan: dict[str, Any], prompts: list[list[int]]) -> Any:
        """Compile it."""
        from torch._inductor.async_compile import shutdown_compile_workers

        from srrc.bench.memory import peak, reset_peak
        from srrc.bench.plan import Plan

        if self._cache is not None:
            os.environ[CACHE_VARIABLE] = self._cache
        made = self._session.compile(Plan(**plan), prompts)
        shutdown_compile_workers()
        made["peak_bytes"], made["graphs"] = peak(), self._session.graphs()
        reset_peak()
        return made

    def leave_out_guards(self) -> Any:
        """Trust that nothing changes that graphs were compiled for."""
        return self._session.leave_out_guards()

    def start(self, **arguments: Any) -> Any:
        """Prefill."""
        return self._session.start(**arguments)

    def steps(self, **arguments: Any) -> Any:
        """Decode."""
        return self._session.steps(**arguments)

    def read(self, reference: str, **arguments: Any) -> Any:
        """Read held-out text."""
        return asdict(self._session.read(reference=Path(reference), **arguments))

    def write(self, **arguments: Any) -> Any:
        """Answer requests."""
        return self._session.write(**arguments)

    def finish(self) -> Any:
        """What is known only at the end."""
        from srrc.bench.memory import peak

        session = self._session
        return {"peak_bytes": peak(), "graphs": session.graphs(), "fallbacks": dict(session.fallbacks)}


def serve(requests: TextIO, answers: TextIO, answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer requests until they end."""
    for line in requests:
        reply: dict[str, Any]
        try:
            reply = {"ok": answer(json.loads(line))}
        except SrrError as error:
            reply = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the other variants go on
            traceback.print_exc()
            first = next(iter(str(error).strip().splitlines()), "")
            reply = {"error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    """Serve standard input until it ends."""
    sys.path.append("")  # as `srrc` does: a module:factory of the working directory can be named
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = Answers(sys.argv[1] if len(sys.argv) > 1 else None)
    serve(sys.stdin, answers, lambda request: getattr(known, request.pop("do"))(**request))


if __name__ == "__main__":
    main()
