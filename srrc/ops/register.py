"""One way to register an op of the namespace `srr`: schema, reference, fake and gradient.

`torch.library.register_autograd` takes no op that mutates an argument, and every gated op adds to its
counters; so the autograd formula is an `autograd.Function` here, for all ops alike. The native library puts
a kernel before it that returns to C++ at once when no gradient is wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

Grads = Mapping[str, Tensor | list[Tensor | None] | None]
Needs = Mapping[str, bool]
Backward = Callable[..., Grads]
"""`backward(grads, needs, **arguments)`: gradients by argument name; what is not named gets none."""


def register(
    schema: str,
    reference: Callable[..., Tensor | list[Tensor]],
    fake: Callable[..., Tensor | list[Tensor]],
    backward: Backward,
) -> torch._ops.OpOverload:
    """Define `srr::NAME` from `schema` ("NAME(Tensor x, ...) -> Tensor") and register its parts.

    The reference serves every device (CompositeExplicitAutograd) until a backend registers a kernel of its
    own.
    """
    name, arguments = schema.split("(", 1)
    qualified = f"srr::{name}"
    # flexible_layout: every op reads any strides, so no copy need be made to please it.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
    torch.library.define(qualified, f"({arguments}", tags=tags)
    torch.library.impl(qualified, "CompositeExplicitAutograd")(reference)
    torch.library.register_fake(qualified)(fake)
    op: torch._ops.OpOverload = getattr(torch.ops.srr, name).default
    torch.library.impl(qualified, "Autograd")(_autograd_kernel(op, backward))
    return op


def _below_autograd() -> AbstractContextManager[None]:
    return torch._C._AutoDispatchBelowAutograd()


def _autograd_kernel(op: torch._ops.OpOverload, backward: Backward) -> Callable[..., Any]:
    schema = op._schema  # noqa: SLF001 (torch has no other name for it)
    parameters = schema.arguments
    names = tuple(a.name for a in parameters)
    defaults = tuple(a.default_value for a in parameters)
    # A mutated argument must not be saved for backward: its version has moved on by then.
    written = frozenset(a.name for a in parameters if a.alias_info is not None and a.alias_info.is_write)
    returns_list = not isinstance(schema.returns[0].type, torch.TensorType)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, spec: Any, *flat: Any) -> Any:
            arguments = _pytree.tree_unflatten(list(flat), spec)
            with _below_autograd():
                result = op(*arguments)
            kept = dict(zip(names, arguments, strict=True))
            leaves, ctx.kept_spec = _pytree.tree_flatten(
                {n: None if n in written else kept[n] for n in names}
            )
            ctx.tensor_at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            ctx.save_for_backward(*(leaves[i] for i in ctx.tensor_at))
            ctx.spec = spec
            return tuple(result) if returns_list else result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            leaves = list(ctx.leaves)
            for i, tensor in zip(ctx.tensor_at, ctx.saved_tensors, strict=True):
                leaves[i] = tensor
            arguments: dict[str, Any] = _pytree.tree_unflatten(leaves, ctx.kept_spec)
            wanted = _pytree.tree_unflatten(list(ctx.needs_input_grad[1:]), ctx.spec)
            needs = {n: any(w) if isinstance(w, list) else w for n, w in zip(names, wanted, strict=True)}
            found = backward(list(grads) if returns_list else grads[0], needs, **arguments)
            flat: list[Any] = [None]
            for name, want in zip(names, wanted, strict=True):
                grad = found.get(name)
                if isinstance(want, list):
                    flat += [None] * len(want) if grad is None else list(grad)
                else:
                    flat.append(grad)
            return tuple(flat)

    def kernel(*given: Any) -> Any:
        arguments = (*given, *defaults[len(given) :])  # the dispatcher leaves out trailing defaults
        flat, spec = _pytree.tree_flatten(list(arguments))
        if torch.is_grad_enabled() and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in flat):
            result = Function.apply(spec, *flat)  # type: ignore[no-untyped-call]
            return list(result) if returns_list else result
        with _below_autograd():
            return op(*arguments)

    return kernel


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `linear(x, weight, bias)`, in eager's order of operations.

    grad [..., N], x [..., K], weight [N, K]; needs: (x, weight, bias) -> ([..., K], [N, K], [N]), each None
    where it is not needed.
    """
    flat = grad.reshape(-1, grad.shape[-1])
    grad_x = grad @ weight if needs[0] else None
    grad_weight = flat.t() @ x.reshape(-1, x.shape[-1]) if needs[1] else None
    grad_bias = flat.sum(0) if needs[2] and bias is not None else None
    return grad_x, grad_weight, grad_bias
