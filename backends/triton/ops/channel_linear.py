"""srr_triton::channel_linear: as srr::channel_linear, for 1 to 8 rows and weights laid out by input, by kernels.

One launch lists the channels that a row keeps, and another reads those of all the weights.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.lists import Kept, guarded
from srrc.backends.triton.kernels.select import select
from srrc.backends.triton.kernels.sparse_linear import Config, configs, default_config, sparse_linear
from srrc.backends.triton.tune import key, lookup
from srrc.ops.emphasis import LIMIT
from srrc.ops.gate import zero_unless

NAME = "sparse_linear"

Pair = tuple[Tensor, Tensor | None]
"""A weight and its bias."""


def config_for(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Config:
    """How such a linear is launched: as measured on this card, or by default."""
    return lookup(*choice(rows, inputs, outputs, dtype), device)


def choice(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[str, Sequence[Config], Config]:
    """What `tune` keeps its configuration under, what there is to choose from, and the default."""
    name = key(NAME, rows=rows, inputs=inputs, outputs=outputs, dtype=dtype)
    return name, configs(rows, inputs, outputs), default_config(inputs, outputs, dtype)


def block_for(rows: int, weights: Sequence[Tensor]) -> int:
    """Channels of the lists that these weights read: what the largest launch of `over_lists` has measured best."""
    launches = groups(weights, [None] * len(weights))
    launches = [some for some in launches if laid_out_by_input(some[0][0])] or launches
    return _launch(rows, max(launches, key=_outputs)).block


def _launch(rows: int, some: Sequence[Pair]) -> Config:
    weight = some[0][0]
    return config_for(rows, weight.shape[1], _outputs(some), weight.dtype, weight.device)


def _outputs(some: Sequence[Pair]) -> int:
    return sum(len(weight) for weight, _ in some)


def factors(x: Tensor, probes: Tensor) -> Tensor:
    """What the scores of each row of x [B, K] are multiplied by, as `srrc.ops.emphasis` says: float32 [..., B].

    probes: float32 [..., K + 1]. Written as a sum, which Inductor makes one kernel of.
    """
    wide = x.to(torch.float32)
    rms = wide.square().mean(-1).sqrt()
    along = torch.where(rms > 0, (wide * probes[..., None, :-1]).sum(-1) / rms, 0.0)
    return (along + probes[..., -1:]).clamp(-LIMIT, LIMIT).exp()


def over_lists(
    x: Tensor,
    kept: Kept,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    gate: Tensor,
    counters: Tensor,
    *,
    counter: int = 0,
) -> Tensor:
    """Linears over the listed channels of x [B, K], side by side: one launch where weights are laid out by input.

    Otherwise, as where one parameter holds rows of `up` too, dense ones, with zeros for what is not listed.
    """
    told: Tensor | None = counters
    found = []
    for some in groups(weights, biases):
        if laid_out_by_input(some[0][0]):
            (weight, bias), *others = some
            config = replace(_launch(len(x), some), block=kept.block)  # one list serves all
            found.append(
                sparse_linear(
                    x, kept, weight, None, bias, gate, told, counter=counter, others=others, config=config
                )
            )
        else:
            ((weight, bias),) = some
            whole = replace(kept, counts=guarded(kept, gate, told, counter=counter))
            found.append(F.linear(zero_unless(whole.mask(), x), weight, bias))
        told = None  # once is enough
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def groups(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[list[Pair]]:
    """Successive weights, with their biases, that one launch takes: three at most, and whose biases may be absent."""
    found: list[list[Pair]] = []
    for pair in zip(weights, biases, strict=True):
        last = found[-1] if found else []
        if last and len(last) < 3 and all(laid_out_by_input(weight) for weight, _ in (*last, pair)):
            last.append(pair)
        else:
            found.append([pair])
    return found


def laid_out_by_input(weight: Tensor) -> bool:
    """Whether the weights of a channel of a weight [N, K] lie side by side."""
    return weight.stride(0) == 1 or len(weight) == 1


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
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    block = block_for(len(rows), weights)
    kept = select(rows, norm, gate, None if emphasis is None else factors(rows, emphasis), block=block)
    found = over_lists(rows, kept, weights, biases, gate, counters)
    return found.reshape(*x.shape[:-1], found.shape[-1])


op = torch.library.triton_op("srr_triton::channel_linear", channel_linear, mutates_args={"counters"})
