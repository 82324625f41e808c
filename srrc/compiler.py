"""From one captured graph to something that runs: the passes, the regions, the driver, once for each signature."""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo.convert_frame import compile_lock
from torch._subclasses import FakeTensorMode

from srrc.backends.cpu.build import ensure_built
from srrc.backends.cpu.lower import LowerDense
from srrc.backends.cuda_graphs import compile_on_card
from srrc.backends.inductor import compile_region
from srrc.backends.triton import card
from srrc.control.gate_time import GateTime
from srrc.dump import stage_writer, write_result
from srrc.errors import OptionError, SrrError
from srrc.gated_calls import Values, branch_calls, gated_calls
from srrc.options import Options, dense
from srrc.passes.base import Pass
from srrc.passes.capture import fake_mode_of, parameter_names, placeholders
from srrc.passes.context import Context
from srrc.passes.copy_graph import copy_graph
from srrc.passes.cuts import region_cuts
from srrc.passes.drifting_output import drifting_output
from srrc.passes.enclose import Enclose
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pack_weights import PackWeights
from srrc.passes.partition import Region, partition
from srrc.passes.pipeline import run_passes
from srrc.passes.rows import FEW_ROWS
from srrc.passes.token_embedding import token_embedding
from srrc.pathways.base import Pathway
from srrc.pathways.channel import ChannelGroup
from srrc.reasons import Reason, Refusal
from srrc.routing import NO_PROFILE, budget_of, gate_source, guard_weights, listen, profile_of, route, watched
from srrc.runtime.compiled_graph import CompiledGraph
from srrc.runtime.costs import GraphCost, dense_cost
from srrc.runtime.driver import Step, build_driver
from srrc.runtime.fallback import fall_back
from srrc.runtime.gate_times import branch_times, gate_times
from srrc.runtime.gates import GateStore
from srrc.runtime.huge_pages import use_huge_pages
from srrc.runtime.release import release
from srrc.runtime.specialisations import Signature

log = logging.getLogger("srrc.cache")

NOT_ON_CARDS = {"residual": Reason.WAITS_FOR_THE_HOST}
"""Kinds of pathway without gates on a GPU. To leave a branch out there, the host must read the gate's decision: the
card runs dry meanwhile, twice in each layer, and no CUDA graph can hold it."""


@dataclass(frozen=True)
class Capture:
    """What Dynamo handed over, kept as it was: later specialisations start from it.

    gm:       the graph; passes work on copies
    fqns:     placeholder name -> name of the parameter or buffer
    weights:  the same placeholders -> the tensors, held weakly
    symbols:  the graph's symbolic sizes -> position of the argument that holds each
    device:   where it runs
    """

    gm: fx.GraphModule
    fqns: Mapping[str, str]
    weights: Mapping[str, "weakref.ref[torch.Tensor]"]
    symbols: Mapping[sympy.Symbol, int]
    fake_mode: FakeTensorMode
    gate_store: GateStore
    device: torch.device

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Positions among the arguments of token ids and of their embeddings; None where there are none."""
        found = token_embedding(self.gm, self.fqns)
        if found is None:
            return None
        inputs = placeholders(self.gm)
        return inputs.index(found[0]), inputs.index(found[1])

    def living_weights(self) -> dict[str, torch.Tensor]:
        """The weights by placeholder name."""
        found = {name: reference() for name, reference in self.weights.items()}
        return {name: weight for name, weight in found.items() if weight is not None}


def capture(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Capture:
    """Read Dynamo's graph."""
    fqns = parameter_names(gm, example_inputs)
    inputs = placeholders(gm)
    weights = {n.name: weakref.ref(e) for n, e in zip(inputs, example_inputs, strict=True) if n.name in fqns}
    symbols: dict[sympy.Symbol, int] = {}
    for position, node in enumerate(inputs):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and isinstance(value.node.expr, sympy.Symbol):
            symbols.setdefault(value.node.expr, position)
    on_card = (e.device for e in example_inputs if isinstance(e, torch.Tensor) and e.is_cuda)
    device = next(on_card, torch.device("cpu"))
    return Capture(gm, fqns, weights, symbols, fake_mode_of(gm), GateStore(device), device)


def compile_capture(captured: Capture, graph: CompiledGraph) -> Callable[..., Any]:
    """Compile for the sizes that Dynamo captured; other signatures are compiled when they are first called.

    Fills `graph`. Raises whatever a pass or Inductor raises.
    """
    profile = profile_of(graph.options)
    if profile is None and not dense(budget_of(graph)):
        raise OptionError(NO_PROFILE)
    weights = captured.living_weights()
    source = None if profile is None else gate_source(profile, captured.fqns, weights)
    refusal = None if source is None or captured.device.type == "cpu" else card.unfit(captured.device)
    if refusal is not None:
        fall_back(graph, refusal)
        source = None
    first = _specialise(captured, graph, source, {})
    run = _dispatch(captured, graph, source, first)
    if profile is None or not graph.gates:
        write_result(graph.options.dump_dir, graph)
        return run if profile is None else listen(graph, profile, captured.tokens, run)
    route(graph, profile, captured.tokens)
    write_result(graph.options.dump_dir, graph)
    named = {captured.fqns[name]: weight for name, weight in weights.items()}
    positions = {
        captured.fqns[n.name]: at for at, n in enumerate(placeholders(captured.gm)) if n.name in weights
    }
    check = guard_weights(graph, profile, positions, named)
    fixed = {id(weight) for weight in weights.values() if isinstance(weight, torch.nn.Parameter)}
    return watched(graph, run, check, fixed)


def _dispatch(
    captured: Capture, graph: CompiledGraph, source: GateSource | None, first: Callable[..., Any]
) -> Callable[..., Any]:
    """What Dynamo calls: counts the call and picks the specialisation for its sizes."""
    graph.cost = GraphCost(dense_cost(graph.pathways), list(captured.symbols))
    positions = list(captured.symbols.values())
    rows = _rows(graph.pathways, list(captured.symbols))
    below_autograd = torch._C._AutoDispatchBelowAutograd  # each op then goes straight to its kernel

    def call_static(*args: Any) -> Any:
        graph.count([args[position] for position in positions])
        with below_autograd():
            return first(*args)

    if rows is None:
        return call_static

    def call_dynamic(*args: Any) -> Any:
        sizes = [args[position] for position in positions]
        graph.count(sizes)
        signature = _signature(rows(*sizes))
        run = graph.cache.get(signature, lambda: _respecialise(captured, graph, source, sizes, first))
        with below_autograd():
            return run(*args)

    captured_rows = rows(*(_captured_size(captured, position) for position in positions))
    graph.cache.get(_signature(captured_rows), lambda: first)
    return call_dynamic


def _specialise(
    captured: Capture, graph: CompiledGraph, source: GateSource | None, sizes: Mapping[sympy.Symbol, int]
) -> Callable[..., Any]:
    """Run the passes, compile each different region once, and generate the driver."""
    fake_mode = captured.fake_mode
    context = Context(graph.options, dict(captured.fqns), gate_store=captured.gate_store, sizes=dict(sizes))
    on_card = captured.device.type == "cuda"
    refused = NOT_ON_CARDS if on_card else {}
    gating = InsertGates(source, graph.options.levels, fake_mode, refused, fixed_rows=on_card)
    passes: list[Pass] = [Normalise(), FindPathways(), gating]
    passes += [] if source is None else [PackWeights(source, fake_mode)]
    times: dict[str, GateTime] = {}
    if on_card:
        passes += _lower_to_card(graph, source, captured.device, times)
    else:
        passes += _lower_to_cpu(source, fake_mode)
    observe = stage_writer(graph.options.dump_dir, graph)
    gm = run_passes(passes, fx.GraphModule(captured.gm, copy_graph(captured.gm.graph)), context, observe)
    # A card is fed by one call: between regions it would wait for Python, and a CUDA graph is of all or nothing.
    regions = partition(gm, () if on_card else region_cuts(gm.graph, context.pathways))
    compiled = _compile_regions(gm, regions, captured, graph.options)
    log.info("%d regions, %d compiled", len(regions), len(set(map(id, compiled))))
    pairs = zip(compiled, regions, strict=True)
    driver = build_driver(gm, [Step(run, r.inputs, r.outputs, r.condition) for run, r in pairs])
    graph.regions, graph.source = (len(regions), len(set(map(id, compiled)))), driver.source
    graph.pathways, graph.refusals = context.pathways, context.refusals
    graph.output = drifting_output(gm, context.pathways)
    graph.add_gates(context.gates)
    if context.gates and not on_card:
        values = Values(gm, captured.living_weights(), sizes)
        branches = branch_calls(context.gates, values, [*zip(regions, compiled, strict=True)])
        times = gate_times(gated_calls(context.gates, values)) | branch_times(branches, context.gates)
    graph.times = {**graph.times, **times}
    release(())  # compiling leaves as much in the allocator's arenas as a small model weighs
    use_huge_pages([*captured.living_weights().values(), *gm.buffers()])
    return driver.run


def _lower_to_cpu(source: GateSource | None, fake_mode: FakeTensorMode) -> list[Pass]:
    dense: list[Pass] = [LowerDense(fake_mode)] if ensure_built() else []
    return dense if source is None else [*dense, Enclose(fake_mode)]


def _lower_to_card(
    graph: CompiledGraph, source: GateSource | None, device: torch.device, times: dict[str, GateTime]
) -> list[Pass]:
    """What stays dense is Inductor's. times: by gate id, filled when the passes run."""
    if source is None:
        return []
    from srrc.backends.triton.lower import LowerTriton  # Triton is not everywhere
    from srrc.backends.triton.worth import measure

    return [
        LowerTriton(lambda refusal: fall_back(graph, refusal), lambda parts: measure(parts, device), times)
    ]


def _compile_regions(
    gm: fx.GraphModule, regions: Sequence[Region], captured: Capture, options: Options
) -> list[Callable[..., Any]]:
    """Compile each different region once. Returns a callable for each region, in order.

    Where Inductor put guards on a region's symbols, they hold for that region's symbols alone: it is not shared.
    """
    fake_mode = captured.fake_mode
    guards = fake_mode.shape_env.guards if fake_mode.shape_env is not None else []
    shared: dict[str, Callable[..., Any]] = {}
    compiled = []
    for region in regions:
        run = shared.get(region.key)
        if run is None:
            before = len(guards)
            run = _compile_region(gm, region, captured, options)
            if len(guards) == before:
                shared[region.key] = run
        compiled.append(run)
    return compiled


def _compile_region(
    gm: fx.GraphModule, region: Region, captured: Capture, options: Options
) -> Callable[..., Any]:
    """What runs `region`: Inductor's code, or a gate itself where it stands alone, which needs no code around it."""
    node = region.nodes[0]
    if len(region.nodes) == 1 and node.target is torch.ops.srr.layer_gate.default:
        places = [region.inputs.index(argument) for argument in node.all_input_nodes]
        return lambda *arguments: (torch.ops.srr.layer_gate.default(*(arguments[at] for at in places)),)
    inputs = [each.meta["example_value"] for each in region.inputs]
    module, fake_mode = region.module(gm), captured.fake_mode
    if captured.device.type == "cuda":
        return compile_on_card(module, inputs, fake_mode, cuda_graphs=options.cuda_graphs)
    return compile_region(module, inputs, fake_mode)


def _respecialise(
    captured: Capture,
    graph: CompiledGraph,
    source: GateSource | None,
    sizes: Sequence[int],
    first: Callable[..., Any],
) -> Callable[..., Any]:
    """Compile for another signature, after Dynamo has installed its guards.

    What Inductor would want to guard on now can be guarded no more: then the first specialisation, which is right
    for every size, serves this signature too.
    """
    guards = captured.fake_mode.shape_env.guards if captured.fake_mode.shape_env is not None else []
    before = len(guards)
    try:
        with compile_lock:  # the user's call is not under it, and Inductor compiles for one thread at a time
            run = _specialise(captured, graph, source, dict(zip(captured.symbols, sizes, strict=True)))
    except SrrError:
        raise
    except Exception as error:  # noqa: BLE001  (the first specialisation runs the user's program)
        detail = f"a specialisation for sizes {list(sizes)}: {type(error).__name__}: {error}"
        fall_back(graph, Refusal("graph", "graph", Reason.COMPILE_FAILED, detail), cause=error)
        return first
    if len(guards) != before:
        log.info("sizes %s would need new guards: the first specialisation serves them", list(sizes))
        return first
    return run


def _rows(pathways: Sequence[Pathway], symbols: list[sympy.Symbol]) -> Callable[..., int] | None:
    """The rows that most linears of the graph see, as a function of the sizes; None where sizes do not change them."""
    seen: Counter[sympy.Expr] = Counter()
    for site in (pathway.site for pathway in pathways if isinstance(pathway.site, ChannelGroup)):
        shape = site.x.meta["example_value"].shape[:-1]
        sizes = [size.node.expr if isinstance(size, torch.SymInt) else size for size in shape]
        seen[sympy.Mul(*sizes)] += 1
    if not seen:
        return None
    rows = seen.most_common(1)[0][0]
    if not rows.free_symbols or not rows.free_symbols.issubset(symbols):
        return None
    compiled: Callable[..., int] = sympy.lambdify(symbols, rows, modules="math")
    return compiled


def _signature(rows: int) -> Signature:
    return Signature("decode" if rows <= FEW_ROWS else "prefill")


def _captured_size(captured: Capture, position: int) -> int:
    return int(placeholders(captured.gm)[position].meta["example_value"].node.hint)
