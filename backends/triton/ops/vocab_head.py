"""srr_triton::vocab_head: as srr::vocab_head, for 1 to 8 rows, by kernels; nothing waits for the device.

Where every logit is exact (`whole`), the lists of channels are empty, so that nothing coarse is read, and every token
is a candidate. A coarse copy may have more tokens than the vocabulary, as `srrc.ops.vocab_head` says: its rows are read
whole, in pieces of 16 bytes, and what they hold of no token is left out afterwards.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from srrc.backends.triton.kernels.select import select
from srrc.backends.triton.kernels.sparse_linear import sparse_linear
from srrc.backends.triton.kernels.vocab_head import Config, configs, default_config
from srrc.backends.triton.kernels.vocab_head import vocab_head as exact_logits
from srrc.backends.triton.ops.channel_linear import config_for
from srrc.backends.triton.tune import key, lookup

NAME = "vocab_head"


def head_config_for(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Config:
    """How exact logits are computed: as measured on this card, or by default."""
    return lookup(*head_choice(rows, vocabulary, dtype), device)


def head_choice(rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[str, Sequence[Config], Config]:
    """As `channel_linear.choice`."""
    name = key(NAME, rows=rows, vocabulary=vocabulary, dtype=dtype)
    return name, configs(rows), default_config(rows, dtype)


def vocab_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rotation: Tensor,
    mean: Tensor,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
) -> Tensor:
    """Raises ValueError for what the kernels do not take; `lower.py` asks before."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    # The rotation's product as a sum: Inductor makes one kernel of it, which widens what it reads as it goes.
    # Its rows are outermost, so that programs which need the same one run side by side: it is read once for all of x.
    centred = rows.to(torch.float32) - mean
    y = (centred * rotation.to(torch.float32)[:, None]).sum(-1).t().contiguous()
    logits = logits_of(rows, y, weight, bias, coarse, coarse_scale, coarse_bias, norm, gate, counters, exact)
    return logits.reshape(*x.shape[:-1], len(weight))


def logits_of(
    rows: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
) -> Tensor:
    """The rest of the op, once rows [B, H] are rotated: y [B, H] float32 -> [B, V]."""
    (batch, inputs), vocabulary = rows.shape, len(weight)
    config = config_for(batch, inputs, len(coarse), coarse.dtype, rows.device)
    kept = select(y, norm, gate, block=config.block)
    failed = kept.rows.sum(1) < gate[1] * inputs
    number = kept.counts.sum()
    whole = failed.any() | (number == inputs)
    read = dataclasses.replace(kept, counts=torch.where(whole, 0, kept.counts))
    rough = sparse_linear(y, read, coarse, coarse_scale, coarse_bias, config=config)[:, :vocabulary]
    odd = rough.isnan().any(-1) & ~whole
    whole = whole | odd.any()
    candidates = whole.expand(rough.shape)
    if exact > 0:
        last = rough.topk(min(exact, vocabulary), sorted=False).values.amin(-1, keepdim=True)
        candidates = (rough >= last) | whole
    launch = head_config_for(batch, vocabulary, rows.dtype, rows.device)
    logits = exact_logits(rows, weight, candidates.contiguous(), rough, bias=bias, config=launch)
    offered = batch * inputs
    executed = torch.where(whole, offered, number * batch)
    told = (
        torch.full_like(executed, offered),
        executed,
        failed.sum() + odd.sum(),
        torch.where(whole, 0, batch),
    )
    counters += torch.stack(told)
    return logits


op = torch.library.triton_op("srr_triton::vocab_head", vocab_head, mutates_args={"counters"})
