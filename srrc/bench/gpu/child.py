"""One case, in a process of its own: what it finds goes to a file, a line of JSON each, as soon as it is found."""

import dataclasses
import importlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

from srrc.bench.gpu.record import KINDS, Found, Skipped

DONE = "done"
"""The kind of the last line, without which the process died."""

Tell = Callable[[str, object], None]


def run(name: str, found: Path, *, warming: bool, measure: bool, kept: Path | None = None) -> None:
    """Run the case, and end the process: what a broken card leaves behind cannot keep it.

    warming, kept: as `timing.Mode` has them
    """
    import torch

    from srrc.bench.gpu import timing

    timing.MODE.warming, timing.MODE.kept = warming, kept
    if warming:
        # All cases do so at once: with as many threads each as there are cores, they would wait for one another.
        torch.set_num_threads(1)
    else:
        _choose_anew()
    with found.open("a", encoding="utf-8") as lines:

        def tell(kind: str, what: object) -> None:
            lines.write(json.dumps({"kind": kind, "what": what}) + "\n")
            lines.flush()

        walk(name, tell, measure=measure)
        tell(DONE, None)
    if not warming:
        os._exit(0)


def walk(name: str, tell: Tell, *, measure: bool) -> None:
    """Tell everything that the case finds. Where its checks break, it is measured all the same, if the card runs."""
    try:
        case = importlib.import_module(f"srrc.bench.gpu.{name}")
        stages = [case.checks, *([case.measurements] if measure else [])]
    except Exception:  # noqa: BLE001 (whatever it is, it is told)
        tell("broken", traceback.format_exc(limit=-6))
        return
    for stage in stages:
        try:
            for found in stage():
                tell(_kind(found), dataclasses.asdict(found))
        except Skipped as why:
            tell("skipped", str(why))
            return
        except Exception:  # noqa: BLE001 (one kernel that breaks must not hide the others)
            tell("broken", traceback.format_exc(limit=-6))
            if not _runs():
                return


def _choose_anew() -> None:
    """Let Inductor measure again what it chose while everything was compiled at once; what Triton made is kept."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    functorch.enable_autograd_cache = False
    inductor.fx_graph_cache = inductor.autotune_local_cache = False


def _kind(found: Found) -> str:
    return next(kind for kind, made in KINDS.items() if isinstance(found, made))


def _runs() -> bool:
    """Whether the card still does: after an illegal access a process can do nothing more with it."""
    import torch

    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 (of whatever class it is in this torch)
        return False
    return True
