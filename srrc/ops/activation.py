"""Activations that a fused MLP knows by name, each with its derivative (times the incoming gradient).

The derivative is written out rather than left to autograd, so that a backward pass can be traced by
AOTAutograd. `relu2` and `quick_gelu` round after every step, as the eager models that use them do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.errors import OptionError


@dataclass(frozen=True)
class Activation:
    """`forward(x)` is elementwise; `backward(grad, x)` is `grad * forward'(x)`."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _quick_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(1.702 * x)
    return grad * (s + 1.702 * x * s * (1 - s))


def _sigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(grad, torch.sigmoid(x))  # type: ignore[no-any-return]


def _tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(grad, torch.tanh(x))  # type: ignore[no-any-return]


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(F.silu, torch.ops.aten.silu_backward),
    "gelu": Activation(F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": Activation(
        _gelu_tanh, lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    ),
    "relu": Activation(F.relu, lambda grad, x: grad * (x > 0)),
    "relu2": Activation(_relu2, lambda grad, x: grad * 2 * F.relu(x)),
    "quick_gelu": Activation(_quick_gelu, _quick_gelu_backward),
    "sigmoid": Activation(torch.sigmoid, _sigmoid_backward),
    "tanh": Activation(torch.tanh, _tanh_backward),
}


def lookup(name: str) -> Activation:
    """The activation called `name`; OptionError, naming the known ones, if there is none."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(ACTIVATIONS)
        raise OptionError(f"unknown activation {name!r}: srr ops know {known}") from None
