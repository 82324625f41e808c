"""Runs passes in order, and after each one checks the graph, logs it, and hands it to whoever dumps it."""

import logging
import os
from collections.abc import Callable, Sequence
from time import perf_counter

from torch import fx

from srrc.passes.base import Pass
from srrc.passes.context import Context

log = logging.getLogger("srrc.passes")

Observer = Callable[[str, fx.GraphModule], None]


def run_passes(
    passes: Sequence[Pass], gm: fx.GraphModule, context: Context, observe: Observer | None = None
) -> fx.GraphModule:
    """Run `passes` over `gm`. `observe(name, graph)` sees the graph as captured and after every pass."""
    if observe is not None:
        observe("captured", gm)
    for each in passes:
        started = perf_counter()
        gm = each(gm, context)
        gm.graph.lint()
        gm.recompile()
        log.info("%s: %d nodes, %.1f ms", each.name, len(gm.graph.nodes), 1e3 * (perf_counter() - started))
        if log.isEnabledFor(logging.DEBUG):
            log.debug("after %s:\n%s", each.name, gm.code)
        if observe is not None:
            observe(each.name, gm)
    return gm


def configure_logs(wanted: str | None = None) -> None:
    """Switch on the logs named in `SRRC_LOGS`: `passes`, `plan`, `cache`, `feedback`. A `+` before a name prints the
    graphs too.
    """
    for item in filter(None, (wanted if wanted is not None else os.environ.get("SRRC_LOGS", "")).split(",")):
        logger = logging.getLogger(f"srrc.{item.strip().lstrip('+')}")
        logger.setLevel(logging.DEBUG if item.strip().startswith("+") else logging.INFO)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("[srrc %(name)s] %(message)s"))
            logger.addHandler(handler)
