"""srr_triton::channel_linear: as srr::channel_linear, for 1 to 8 rows and weights laid out by input, by kernels.

One launch lists the channels that a row keeps, and each linear reads those of its weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from srrc.backends.triton.kernels.select import select
from srrc.backends.triton.kernels.sparse_linear import Config, configs, default_config, sparse_linear
from srrc.backends.triton.tune import key, lookup
from srrc.ops import emphasis as of_rows

NAME = "sparse_linear"


def config_for(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Config:
    """How such a linear is launched: as measured on this card, or by default."""
    space, default = configs(rows, inputs, outputs), default_config(inputs, outputs)
    return lookup(linear_key(rows, inputs, outputs, dtype), space, default, device)


def linear_key(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> str:
    """What `tune` keeps its configuration under."""
    return key(NAME, rows=rows, inputs=inputs, outputs=outputs, dtype=dtype)


def factor(x: Tensor, probe: Tensor | None) -> Tensor | None:
    """What the scores of each row of x [B, K] are multiplied by, float32 [B]; None without a probe."""
    return None if probe is None else of_rows.emphasis(x, probe).exp().squeeze(-1)


def channel_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Raises ValueError for what the kernels do not take; `lower.py` asks before."""
    rows = x.reshape(-1, x.shape[-1])
    total = sum(len(weight) for weight in weights)
    block = config_for(len(rows), rows.shape[1], total, x.dtype, x.device).block
    kept = select(rows, norm, gate, factor(rows, emphasis), block=block)
    found = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        config = config_for(len(rows), rows.shape[1], len(weight), x.dtype, x.device)
        told = counters if index == 0 else None
        found.append(sparse_linear(rows, kept, weight, bias=bias, gate=gate, counters=told, config=config))
    out = found[0] if len(found) == 1 else torch.cat(found, -1)
    return out.reshape(*x.shape[:-1], total)


op = torch.library.triton_op("srr_triton::channel_linear", channel_linear, mutates_args={"counters"})
