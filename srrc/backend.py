"""The Dynamo door: `torch.compile(model, backend="srr", options={...})`.

Dynamo finds `srr` by its entry point and calls it once for each graph of the model. The graph goes through the
passes, its regions are compiled, and a driver calls them. Whatever goes wrong, the untouched graph is compiled as
`backend="inductor"` would, with one warning that says why (an error under `strict=True`).
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses import FakeTensor, FakeTensorMode

from srrc.backends.cpu.lower import LowerDense
from srrc.backends.inductor import compile_region, compile_whole
from srrc.errors import OptionError, SrrError
from srrc.options import Options, parse_options
from srrc.passes.capture import needs_gradients, parameter_names, placeholders
from srrc.passes.context import Context
from srrc.passes.cuts import region_cuts
from srrc.passes.find_pathways import FindPathways
from srrc.passes.normalise import Normalise
from srrc.passes.partition import Region, partition
from srrc.passes.pipeline import configure_logs, run_passes
from srrc.reasons import Reason, Refusal
from srrc.runtime.compiled_graph import CompiledGraph, callable_of, record
from srrc.runtime.costs import GraphCost, dense_cost
from srrc.runtime.driver import Step, build_driver
from srrc.runtime.fallback import fall_back


def srr(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph. Raises OptionError for options that are not srrc's (see `srrc.options.Options`)."""
    if mode is not None:
        raise OptionError(f"mode={mode!r} is Inductor's; the srr backend takes options={{'budget': ...}} instead")
    parsed = parse_options(options)
    configure_logs()
    graph = CompiledGraph(parsed, [weakref.ref(t) for t in example_inputs if isinstance(t, torch.Tensor)])
    record(graph)
    refusal = _unfit(gm, example_inputs)
    if refusal is None:
        try:
            return _compile(gm, example_inputs, graph)
        except SrrError:
            raise
        except Exception as error:  # whatever a pass or Inductor raises, the user's program must run
            refusal = Refusal("graph", "graph", Reason.COMPILE_FAILED, f"{type(error).__name__}: {error}")
            fall_back(graph, refusal, cause=error)
    else:
        graph.refusals.append(refusal)
    return _dense(gm, example_inputs, graph)


def _unfit(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Refusal | None:
    """Why this graph is left to Inductor as it is, or None where srrc compiles it."""
    if needs_gradients(example_inputs):
        return Refusal("graph", "graph", Reason.AUTOGRAD, "call it under torch.no_grad() to compile it for inference")
    for example in example_inputs:
        if isinstance(example, torch.Tensor) and example.device.type != "cpu":
            return Refusal("graph", "graph", Reason.NOT_CPU, f"an input is on {example.device}")
        if isinstance(example, torch.Tensor) and torch.utils._python_dispatch.is_traceable_wrapper_subclass(example):
            return Refusal("graph", "graph", Reason.UNSUPPORTED_DTYPE, f"an input is a {type(example).__name__}")
    return None


def _dense(gm: fx.GraphModule, example_inputs: Sequence[Any], graph: CompiledGraph) -> Callable[..., Any]:
    run = compile_whole(gm, example_inputs)

    def call(*args: Any) -> Any:
        graph.calls += 1
        return run(*args)

    return call


def _compile(gm: fx.GraphModule, example_inputs: Sequence[Any], graph: CompiledGraph) -> Callable[..., Any]:
    fake_mode = _fake_mode(gm)
    work = fx.GraphModule(gm, _copy(gm.graph))
    context = Context(options=graph.options, fqns=parameter_names(gm, example_inputs))
    passes = (Normalise(), FindPathways(), LowerDense(fake_mode))
    work = run_passes(passes, work, context)
    graph.pathways, graph.refusals = context.pathways, context.refusals
    regions = partition(work, region_cuts(work.graph, context.pathways))
    compiled: dict[str, Callable[..., Any]] = {}
    for region in regions:
        if region.key not in compiled:
            compiled[region.key] = _compile_one(work, region, fake_mode)
    graph.regions = (len(regions), len(compiled))
    driver = build_driver(work, [Step(compiled[r.key], r.inputs, r.outputs) for r in regions])
    graph.source = driver.source
    cost = dense_cost(context.pathways)
    symbols, positions = _bindings(gm, cost.symbols)
    graph.cost = GraphCost(cost, symbols)
    return callable_of(graph, driver.run, positions)


def _compile_one(gm: fx.GraphModule, region: Region, fake_mode: FakeTensorMode) -> Callable[..., Any]:
    inputs = [node.meta["example_value"] for node in region.inputs]
    return compile_region(region.module(gm), inputs, fake_mode)


def _bindings(gm: fx.GraphModule, symbols: frozenset[sympy.Symbol]) -> tuple[list[sympy.Symbol], list[int]]:
    """Which argument of the graph holds the value of each symbol."""
    found: dict[sympy.Symbol, int] = {}
    for position, node in enumerate(placeholders(gm)):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and value.node.expr in symbols:
            found.setdefault(value.node.expr, position)
    return list(found), list(found.values())


def _fake_mode(gm: fx.GraphModule) -> FakeTensorMode:
    """The mode that the graph's values were traced under (the tracing context already holds another by now)."""
    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def _copy(graph: fx.Graph) -> fx.Graph:
    """A graph that passes may edit, so that the original stays what Dynamo captured."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    return copy
