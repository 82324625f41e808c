"""Compile one region with Inductor.

Regions reach Inductor as pre-grad graphs, each under a tracing context of its own that shares Dynamo's fake mode:
symbols stay those of the whole graph, and what Inductor learns of one region does not leak into the next.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import FakeTensorMode

REGION_CONFIG: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}
"""Layout asserts are off in regions: Dynamo guards the graph's inputs, and `runtime.driver` checks what regions pass
on to each other once, on the first call, instead of on every call (85 microseconds at 210 inputs)."""


def compile_region(
    module: fx.GraphModule, inputs: Sequence[object], fake_mode: FakeTensorMode
) -> Callable[..., Any]:
    """Compile `module` (it is consumed) for `inputs` (fake tensors and SymInts). Returns f(*inputs) -> tuple."""
    with tracing(TracingContext(fake_mode)), torch.no_grad():
        values: list[Any] = [_resolved(value) for value in inputs]
        compiled = compile_fx(module, values, config_patches=dict(REGION_CONFIG))
    return cast("Callable[..., Any]", compiled)


def _resolved(value: object) -> object:
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
