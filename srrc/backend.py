"""The Dynamo door: `torch.compile(model, backend="srr", options={...})`.

Dynamo finds `srr` by its entry point and calls it once for each graph of the model. The graph goes through the
passes, its regions are compiled, and a driver calls them. Whatever goes wrong, the untouched graph is compiled as
`backend="inductor"` would, with one warning that says why (an error under `strict=True`).
"""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import RestartAnalysis, ShortenTraceback
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from srrc.backends.cpu.toolchain import find_compiler
from srrc.backends.inductor import compile_whole
from srrc.compiler import capture, compile_capture
from srrc.dump import write_reproducer
from srrc.errors import OptionError, SrrError
from srrc.options import Options, parse_options
from srrc.passes.capture import needs_gradients
from srrc.passes.copy_graph import copy_graph
from srrc.passes.pipeline import configure_logs
from srrc.reasons import Reason, Refusal
from srrc.runtime.compiled_graph import CompiledGraph, forget, record
from srrc.runtime.costs import GraphCost
from srrc.runtime.fallback import fall_back


def srr(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph; `options` are those of `srrc.options.Options`.

    Raises OptionError for options that are not srrc's, ProfileError for a profile that does not fit, StrictError
    for a fallback under `strict=True`.
    """
    try:
        if mode is not None:
            raise OptionError(
                f"mode={mode!r} is Inductor's; the srr backend takes options={{'budget': ...}} instead"
            )
        configure_logs()
        return compile_graph(gm, example_inputs, parse_options(options))
    except SrrError as error:
        raise _through_dynamo(error, sys._getframe()) from error.__cause__  # noqa: SLF001


def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """The callable that stands for `gm`: compiled by srrc, or the dense graph where that cannot be."""
    graph = CompiledGraph(options, [weakref.ref(t) for t in example_inputs if isinstance(t, torch.Tensor)])
    record(graph)
    try:
        return _compiled(gm, example_inputs, graph)
    except RestartAnalysis:  # Dynamo's way to say that it has learned something, and traces again
        forget(graph)
        raise


def _compiled(gm: fx.GraphModule, example_inputs: Sequence[Any], graph: CompiledGraph) -> Callable[..., Any]:
    refusal = _unfit(example_inputs)
    if refusal is None:
        try:
            return compile_capture(capture(gm, example_inputs), graph)
        except (SrrError, RestartAnalysis):
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, the user's program must run)
            write_reproducer(graph.options.dump_dir, graph, gm, example_inputs, error)
            detail = f"{type(error).__name__}: {error}"
            fall_back(graph, Refusal("graph", "graph", Reason.COMPILE_FAILED, detail), cause=error)
    else:
        graph.refusals.append(refusal)
    return _dense(gm, example_inputs, graph)


def _unfit(example_inputs: Sequence[Any]) -> Refusal | None:
    """Why a graph is left to Inductor as it is, or None where srrc compiles it."""
    if needs_gradients(example_inputs):
        return Refusal(
            "graph", "graph", Reason.AUTOGRAD, "call it under torch.no_grad() to compile it for inference"
        )
    devices = {
        str(e.device) for e in example_inputs if isinstance(e, torch.Tensor) and (e.dim() or e.is_cuda)
    }
    if len(devices) > 1 or any(device.split(":")[0] not in {"cpu", "cuda"} for device in devices):
        return Refusal("graph", "graph", Reason.OTHER_DEVICE, f"inputs are on {', '.join(sorted(devices))}")
    for example in example_inputs:
        if isinstance(example, torch.Tensor) and is_traceable_wrapper_subclass(example):
            return Refusal(
                "graph", "graph", Reason.UNSUPPORTED_DTYPE, f"an input is a {type(example).__name__}"
            )
    return None


def _dense(gm: fx.GraphModule, example_inputs: Sequence[Any], graph: CompiledGraph) -> Callable[..., Any]:
    """Inductor's own compilation of the graph, or where that fails too (it needs a C++ compiler), the graph itself."""
    graph.cost, graph.gates, graph.pathways = GraphCost(), [], []
    plain = fx.GraphModule(gm, copy_graph(gm.graph))  # Inductor edits what it is given
    try:
        run = compile_whole(gm, example_inputs)
    except RestartAnalysis:
        raise
    except Exception as error:  # noqa: BLE001  (whatever Inductor raises, the user's program must run)
        reason = Reason.COMPILE_FAILED if find_compiler() else Reason.NO_COMPILER
        fall_back(graph, Refusal("graph", "graph", reason, f"{type(error).__name__}: {error}"), cause=error)
        run = plain.forward

    def call(*args: Any) -> Any:
        graph.count(())
        return run(*args)

    return call


def _through_dynamo(error: SrrError, frame: FrameType) -> Exception:
    """The same error, of a class that Dynamo hands on to the user as it is instead of wrapping it in its own.

    It goes on to read as one line: Dynamo adds to its arguments how to see more of Dynamo.
    frame: where the traceback may begin, without Dynamo's frames above it.
    """
    kind, message = type(error), str(error)
    own = {"__module__": kind.__module__, "__str__": lambda self: message}
    passing = type(kind.__name__, (ShortenTraceback, kind), own)
    made: Exception = passing(*error.args, first_useful_frame=frame)
    return made
