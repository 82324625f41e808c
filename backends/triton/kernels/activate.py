"""Activations as kernels compute them, in float32, by the names of `srrc.ops.activation`."""

import triton
import triton.language as tl

KNOWN = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "sigmoid", "tanh")


@triton.jit
def activate(x, NAME: tl.constexpr):
    """NAME: one of KNOWN."""
    if NAME == "silu":
        y = x * tl.sigmoid(x)
    elif NAME == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = x * tl.sigmoid(
            1.5957691216057308 * (x + 0.044715 * x * x * x)
        )  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    elif NAME == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif NAME == "sigmoid":
        y = tl.sigmoid(x)
    elif NAME == "tanh":
        y = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    else:
        y = tl.where(x < 0.0, 0.0, x)
        y = y * y if NAME == "relu2" else y
    return y


AHEAD = ()
