"""Compile a whole graph for a GPU with Inductor, and where asked replay it as a CUDA graph.

A CUDA graph reads and writes where it did when it was recorded. So what a graph writes to, its caches, has to hold
still, and what it returns has to be copied before its next call.
"""

import threading
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
from srrc.runtime.strides import empty_as

RETURNED = (OutputType.alias_of_input, OutputType.is_input)
"""What is no output of a graph's own."""

PLACES, ALIGNMENT = 16, 16
"""Recordings of one CUDA graph for caches that lie elsewhere, and bytes that kernels may take for granted."""

RETURNED_BYTES = 1 << 25
"""Outputs of a CUDA graph weigh at most this: logits of 64 rows over 128k tokens, or 256 tokens of an 8B model's cache.
They are in memory twice, its own and its caller's. What returns more is a prefill that makes its caches, gigabytes, and
keeps a card busy without being recorded. Bytes tell it apart, not rows: a large batch's tokens are worth recording."""


def compile_on_card(
    module: fx.GraphModule, inputs: Sequence[object], fake_mode: FakeTensorMode, *, cuda_graphs: bool
) -> Callable[..., Any]:
    """Compile a whole graph for a GPU; as `compile_region`, but that Inductor may replay it as a CUDA graph.

    For that it has to know which inputs stay where they are: parameters, static caches, what the graph holds itself. It
    reads it off a graph of Dynamo's, and takes for one what carries these marks. Graphs of sizes that change are not
    replayed, nor such as return more than `RETURNED_BYTES`. Outputs are the caller's own.
    """
    module.meta["dynamo_compile_id"] = None
    module._param_name_to_source = {}  # type: ignore[assignment]
    for node in module.graph.find_nodes(op="placeholder"):
        node._dynamo_source = None  # noqa: SLF001
    context = TracingContext(fake_mode)
    without_cache = functorch_config.patch(enable_autograd_cache=False)
    outputs = _outputs(module)
    # A size that changes would be recorded anew each time: a cache that grows, at each token.
    recorded = cuda_graphs and not any(map(_is_symbolic, (*inputs, *outputs)))
    recorded = recorded and _made_bytes(outputs, inputs) <= RETURNED_BYTES

    written: list[int] = []

    def inner(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        # What a graph writes to is where its caller left it: copied for it, the caller would not see what is written.
        fixed = kwargs.get("static_input_idxs", ())
        written.extend(_written(context, len(inputs)))
        return compile_fx_inner(
            gm, example_inputs, **{**kwargs, "static_input_idxs": sorted({*fixed, *written})}
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


def _outputs(module: fx.GraphModule) -> list[object]:
    """What stands for each output of a graph, as far as it is known."""
    return [node.meta.get("example_value") for node in module.graph.output_node().all_input_nodes]


def _made_bytes(outputs: Sequence[object], inputs: Sequence[object]) -> int:
    """Bytes of the outputs that are no inputs, nor views of them."""
    given = {_storage(value) for value in inputs if isinstance(value, torch.Tensor)}
    made = (value for value in outputs if isinstance(value, torch.Tensor) and _storage(value) not in given)
    return sum(value.nbytes for value in made)


def _storage(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory, of real ones and of fakes."""
    return cast("int", tensor.untyped_storage()._cdata)


def _written(context: TracingContext, inputs: int) -> Sequence[int]:
    """Which of a graph's inputs it writes to; none where it returns such a one, which may not be another tensor."""
    metadata = context.fw_metadata
    if metadata is None or len(metadata.input_info) != inputs:
        return ()
    written = metadata.mutated_graph_handled_indices
    returned = (each.base_idx for each in metadata.output_info if each.output_type in RETURNED)
    return () if set(written).intersection(returned) else written


class _Recorded(threading.local):
    """What a thread knows of its recordings of one CUDA graph: Inductor's are each thread's own.

    places: of the inputs that it writes to, where it was recorded for them
    first:  where they were at first
    own:    tensors that stand for those inputs that have been elsewhere since. Shared, two threads would each write to
            the other's cache; under a lock too, since each has a stream of its own.
    """

    def __init__(self) -> None:
        self.places: set[tuple[int, ...]] = set()
        self.first: tuple[int, ...] = ()
        self.own: dict[int, torch.Tensor] = {}


def _holds_still(run: Callable[..., Any], written: Sequence[int]) -> Callable[..., Any]:
    """`run`, a CUDA graph that is recorded anew for each place in memory where inputs that it writes to are.

    For a few places: then, and for a place that is not aligned as the graph was made for, it writes to tensors of its
    own, which are copied from and to. What stays where it is, as counters do, is not copied. Caches that are marked as
    static are caches like others: the next request's are elsewhere.
    """
    recorded = _Recorded()

    def call(*args: Any) -> Any:
        places = tuple(args[at].data_ptr() for at in written)
        if places in recorded.places:
            return run(*args)
        recorded.first = recorded.first or places
        aligned = not any(place % ALIGNMENT for place in places)
        if aligned and len(recorded.places) < PLACES:
            recorded.places.add(places)
            return run(*args)
        both = zip(written, places, recorded.first, strict=True)
        moved = [at for at, place, first in both if place != first or place % ALIGNMENT]
        try:
            made = {at: empty_as(args[at]) for at in moved if at not in recorded.own}
        except torch.OutOfMemoryError:
            if not aligned:
                raise
            recorded.places.add(places)  # one recording more takes less
            return run(*args)
        recorded.own.update(made)
        given = list(args)
        for at, tensor in recorded.own.items():
            given[at] = tensor.copy_(args[at])
        found = run(*given)
        for at, tensor in recorded.own.items():
            args[at].copy_(tensor)
        return found

    return call


def _keeps_outputs(run: Callable[..., Any], metadata: ViewAndMutationMeta | None) -> Callable[..., Any]:
    """A CUDA graph's outputs lie in memory that its next call, or another graph's, uses again: they are copied.

    But for those that are inputs, or views of them. Outputs that share memory do so as copies, too.
    """
    info = [] if metadata is None else metadata.output_info
    made = [at for at, each in enumerate(info) if each.output_type not in RETURNED]

    def call(*args: Any) -> Any:
        found = list(run(*args))
        sharing: dict[int, list[int]] = {}
        for at in made:
            if isinstance(found[at], torch.Tensor):
                sharing.setdefault(_storage(found[at]), []).append(at)
        for together in sharing.values():
            copies = _copies([found[at] for at in together])
            for at, copy in zip(together, copies, strict=True):
                found[at] = copy
        return tuple(found)

    return call


def _copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of tensors of one storage, in one storage again: of what they span of it, which may be a part."""
    if len(tensors) == 1:
        return [tensors[0].clone()]
    starts = [tensor.storage_offset() * tensor.itemsize for tensor in tensors]
    start = min(starts) // ALIGNMENT * ALIGNMENT
    end = max(at + _span(tensor) for at, tensor in zip(starts, tensors, strict=True))
    held = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(tensors[0].untyped_storage())
    copy = held[start:end].clone().untyped_storage()
    return [
        tensor.new_empty(0).set_(copy, (at - start) // tensor.itemsize, tensor.shape, tensor.stride())
        for at, tensor in zip(starts, tensors, strict=True)
    ]


def _span(tensor: torch.Tensor) -> int:
    """Bytes from its first element to the end of its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * step for size, step in steps)) * tensor.itemsize if tensor.numel() else 0
