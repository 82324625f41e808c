"""Compile a whole graph for a GPU with Inductor, and where asked replay it as a CUDA graph.

A CUDA graph reads and writes where it did when it was recorded. So what a graph writes to, its caches, has to hold
still, and what it returns has to be copied before its next call.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.schemas import OutputType, ViewAndMutationMeta
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._subclasses import FakeTensorMode

from srrc.backends.inductor import resolved

RETURNED = (OutputType.alias_of_input, OutputType.is_input)
"""What is no output of a graph's own."""

PLACES, ALIGNMENT = 16, 16
"""Recordings of one CUDA graph for caches that lie elsewhere, and bytes that kernels may take for granted."""


def compile_on_card(
    module: fx.GraphModule, inputs: Sequence[object], fake_mode: FakeTensorMode, *, cuda_graphs: bool
) -> Callable[..., Any]:
    """Compile a whole graph for a GPU; as `compile_region`, but that Inductor may replay it as a CUDA graph.

    For that it has to know which inputs stay where they are: parameters, static caches, what the graph holds itself. It
    reads it off a graph of Dynamo's, and takes for one what carries these marks. Graphs of sizes that change are not
    replayed, and outputs are the caller's own.
    """
    module.meta["dynamo_compile_id"] = None
    module._param_name_to_source = {}  # type: ignore[assignment]
    for node in module.graph.find_nodes(op="placeholder"):
        node._dynamo_source = None  # noqa: SLF001
    context = TracingContext(fake_mode)
    without_cache = functorch_config.patch(enable_autograd_cache=False)
    # A size that changes would be recorded anew each time: a cache that grows, at each token.
    recorded = cuda_graphs and not any(map(_is_symbolic, inputs))

    written: list[int] = []

    def inner(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        # What a graph writes to is where its caller left it: copied for it, the caller would not see what is written.
        fixed = kwargs.get("static_input_idxs", ())
        written.extend(at for at in _written(context, len(example_inputs)) if at not in fixed)
        return compile_fx_inner(
            gm, example_inputs, **{**kwargs, "static_input_idxs": sorted((*fixed, *written))}
        )

    with tracing(context), torch.no_grad(), without_cache:
        values: list[Any] = [resolved(value) for value in inputs]
        if not recorded:
            return cast("Callable[..., Any]", compile_fx(module, values, config_patches={}))
        patches = {"triton.cudagraphs": True}
        compiled = compile_fx(module, values, inner_compile=inner, config_patches=patches)
    kept = _keeps_outputs(cast("Callable[..., Any]", compiled), context.fw_metadata)
    return _holds_still(kept, written) if written else kept


def _is_symbolic(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return any(isinstance(size, torch.SymInt) for size in (*value.shape, *value.stride()))
    return isinstance(value, torch.SymInt)


def _written(context: TracingContext, inputs: int) -> Sequence[int]:
    """Which of a graph's inputs it writes to; none where it returns inputs too, which then may not be other tensors."""
    metadata = context.fw_metadata
    if metadata is None or len(metadata.input_info) != inputs:
        return ()
    if any(each.output_type in RETURNED for each in metadata.output_info):
        return ()
    return metadata.mutated_graph_handled_indices


def _holds_still(run: Callable[..., Any], written: Sequence[int]) -> Callable[..., Any]:
    """`run`, a CUDA graph that is recorded anew for each place in memory where inputs that it writes to are.

    For a few places: then, and for a place that is not aligned as the graph was made for, it writes to tensors of its
    own, which are copied from and to.
    """
    known: set[tuple[int, ...]] = set()
    own: list[torch.Tensor] = []

    def call(*args: Any) -> Any:
        places = tuple(args[at].data_ptr() for at in written)
        if places in known:
            return run(*args)
        if len(known) < PLACES and not any(place % ALIGNMENT for place in places):
            known.add(places)
            return run(*args)
        if not own:
            own.extend(_like(args[at]) for at in written)
        given = list(args)
        for at, tensor in zip(written, own, strict=True):
            given[at] = tensor.copy_(args[at])
        found = run(*given)
        for at, tensor in zip(written, own, strict=True):
            args[at].copy_(tensor)
        return found

    return call


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Strides and all, which `empty_like` does not keep where there are gaps."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _keeps_outputs(run: Callable[..., Any], metadata: ViewAndMutationMeta | None) -> Callable[..., Any]:
    """A CUDA graph's outputs lie in memory that its next call, or another graph's, uses again: they are copied.

    But for those that are inputs, or views of them.
    """
    info = [] if metadata is None else metadata.output_info
    made = [at for at, each in enumerate(info) if each.output_type not in RETURNED]

    def call(*args: Any) -> Any:
        found = list(run(*args))
        for at in made:
            if isinstance(found[at], torch.Tensor):
                found[at] = found[at].clone()
        return tuple(found)

    return call
