"""Compile one region with Inductor.

Regions reach Inductor as pre-grad graphs, each under a tracing context of its own that shares Dynamo's fake mode:
symbols stay those of the whole graph, and what Inductor learns of one region does not leak into the next.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.schemas import ViewAndMutationMeta
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import increment_version

REGION_CONFIG: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}
"""Layout asserts are off in regions: Dynamo guards the graph's inputs, and `runtime.driver` checks what regions pass
on to each other once, on the first call, instead of on every call (85 microseconds at 210 inputs)."""


def compile_region(
    module: fx.GraphModule, inputs: Sequence[object], fake_mode: FakeTensorMode
) -> Callable[..., Any]:
    """Compile `module` (it is consumed) for `inputs` (fake tensors and SymInts). Returns f(*inputs) -> tuple.

    AOTAutograd's cache is left out: what comes from it has its wrappers on. Inductor's own is used.
    """
    made: list[Any] = []

    def inner(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        made.append((compile_fx_inner(gm, example_inputs, **kwargs), len(example_inputs)))
        return made[-1][0]

    tracing_context = TracingContext(fake_mode)
    without_cache = functorch_config.patch(enable_autograd_cache=False)
    with tracing(tracing_context), torch.no_grad(), without_cache:
        values: list[Any] = [resolved(value) for value in inputs]
        compiled = compile_fx(module, values, inner_compile=inner, config_patches=dict(REGION_CONFIG))
    metadata = tracing_context.fw_metadata
    if metadata is None or [count for _, count in made] != [len(values)] or not _stands_alone(metadata):
        return cast("Callable[..., Any]", compiled)
    call, written = made[0][0].current_callable, metadata.mutated_graph_handled_indices_seen_by_autograd
    if not written:
        return lambda *args: call(list(args))

    def call_and_count(*args: Any) -> Any:
        increment_version([args[at] for at in written])
        return call(list(args))

    return call_and_count


def _stands_alone(metadata: ViewAndMutationMeta) -> bool:
    """Whether Inductor's code is all of a region, but for the versions of inputs that it writes to.

    AOTAutograd's wrapper makes views of outputs anew, copies what was written back to inputs, and switches autocast
    off. Where there is nothing of that to do it still takes 20 microseconds a region: 6% of a token in SmolLM2-135M.
    """
    return (
        metadata.num_outputs_aliased == 0
        and metadata.num_intermediate_bases == 0
        and metadata.num_mutated_inp_runtime_indices == 0
        and not torch._C._is_any_autocast_enabled()  # noqa: SLF001
    )


def resolved(value: object) -> object:
    """A size under the name that its symbol goes by now.

    Where Dynamo has found two symbols equal, Inductor writes code in terms of one and binds inputs by the name that
    they were made with; in a whole graph some tensor's shape binds the one too, in a region perhaps none does.
    """
    if not isinstance(value, torch.SymInt) or value.node.shape_env is None:
        return value
    return value.node.shape_env.create_symintnode(value.node.expr, hint=value.node.hint)


def compile_whole(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile an untouched Dynamo graph as `backend="inductor"` would: the dense path, with gradients."""
    return cast("Callable[..., Any]", compile_fx(gm, list(example_inputs)))
