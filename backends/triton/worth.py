"""Whether a gated op is worth having on this card: its kernels with half of the units dropped, against dense products.

Each linear of an op is measured on its own, lists included, at each of its configurations, and beside it what cuBLAS
takes; the quickest is kept, per card (`tune.py`). Weights are random: times do not depend on them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton import tune
from srrc.backends.triton.kernels import gated_mlp, sparse_linear, vocab_head
from srrc.backends.triton.kernels.listed_rows import listed_rows
from srrc.backends.triton.kernels.select import select, select_act
from srrc.backends.triton.ops.channel_linear import choice, groups, laid_out_by_input
from srrc.backends.triton.ops.neuron_mlp import rows_choice
from srrc.backends.triton.ops.vocab_head import head_choice
from srrc.ops.vocab_head import SCALE_BLOCK

log = logging.getLogger("srrc.cache")

EXACT = 24
"""One token in so many is a candidate, where a head is measured."""


@dataclass(frozen=True)
class AsIs:
    """The configuration of what has none to choose."""


@dataclass(frozen=True)
class Part:
    """One launch of an op: x [rows, inputs] with weights [outputs, inputs], all in all.

    kind:  "channel" (read by channel), "row" (by neuron), "head" (by candidate), "coarse" (int8, by channel), "dense"
    dense: outputs of each of the products that it stands for
    gate:  the row of the op's gate whose units it leaves out
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    dense: tuple[int, ...] = ()
    gate: int = 0


def channel_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *rest: Any
) -> list[Part]:
    """The parts of an srr::channel_linear that is called with these."""
    return [_linears(x, [weight for weight, _ in some]) for some in groups(weights, biases)]


def neuron_mlp(x: Tensor, *given: Any) -> list[Part]:
    """The parts of an srr::neuron_mlp that is called with these."""
    gate, gate_bias, up, up_bias, down = given[:5]
    by_row = reads_rows_of_up(given)
    pairs = [(gate, gate_bias), (up, up_bias)][gate is None : 1 if by_row else 2]
    found = channel_linear(x, *zip(*pairs, strict=True))
    if by_row:
        neurons, inputs = up.shape
        found.append(Part("row", _rows(x), inputs, neurons, x.dtype, (neurons,), gate=1))
    return [*found, replace(_linears(x, [down]), gate=2)]


def reads_rows_of_up(given: Sequence[Any]) -> bool:
    """Whether an srr::neuron_mlp that is called with x and these reads `up` by neuron: `whole_up`, and a gate."""
    return given[0] is not None and len(given) == 14 and bool(given[13])


def head(x: Tensor, weight: Tensor, *given: Any) -> list[Part]:
    """The parts of an srr::vocab_head that is called with these, but for its rotation. Coarse logits come on top."""
    (tokens, inputs), coarse = weight.shape, given[3]
    sizes = (_rows(x), inputs, tokens)
    return [Part("head", *sizes, x.dtype, (tokens,)), Part("coarse", *sizes, coarse.dtype)]


def _linears(x: Tensor, weights: Sequence[Tensor]) -> Part:
    kind = "channel" if laid_out_by_input(weights[0]) else "dense"
    sizes = tuple(weight.shape[0] for weight in weights)
    return Part(kind, _rows(x), weights[0].shape[1], sum(sizes), x.dtype, sizes)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def worth_it(
    parts: Sequence[Part], device: torch.device, timer: Callable[[tune.Call], float] = tune.events
) -> bool:
    """Measure what was not measured yet on such a card; whether the parts take less than dense products would.

    True where one cannot be measured: then nothing is known against them.
    """
    gated = [_milliseconds(part, device, timer) for part in parts]
    products = [replace(part, kind="dense", outputs=size) for part in parts for size in part.dense]
    dense = [_milliseconds(part, device, timer) for part in products]
    known = [each for each in (*gated, *dense) if each is not None]
    if len(known) < len(gated) + len(dense):
        return True
    return sum(known[: len(gated)]) < sum(known[len(gated) :])


def _fields(part: Part) -> tuple[Any, ...]:
    return part.kind, part.rows, part.inputs, part.outputs, part.dtype


def _milliseconds(part: Part, device: torch.device, timer: Callable[[tune.Call], float]) -> float | None:
    """Of a part at its best, measured once on such a card; None where that cannot be."""
    kind, rows, inputs, outputs, dtype = _fields(part)
    chosen: tuple[str, Sequence[Any], Any]
    if kind == "dense":
        name = tune.key("dense linear", rows=rows, inputs=inputs, outputs=outputs, dtype=dtype)
        chosen = name, (AsIs(),), AsIs()
    elif kind == "row":
        chosen = rows_choice(rows, inputs, outputs, dtype)
    elif kind == "head":
        chosen = head_choice(rows, outputs, dtype)
    else:
        chosen = choice(rows, inputs, outputs, dtype)
    name, space, default = chosen
    if tune.measured(name, device) is None:
        try:
            tune.tune(name, space, default, device, _calls(part, device), timer=timer)
        except torch.OutOfMemoryError:
            log.info("%s is not measured: the card has no room for another such weight", name)
    return tune.measured(name, device)


def _calls(part: Part, device: torch.device) -> Callable[[Any], tune.Call]:
    """What makes the call of a part that is to be timed, with a configuration."""
    kind, rows, inputs, outputs, dtype = _fields(part)
    wide = torch.float32 if kind == "coarse" else dtype
    x = torch.randn(rows, inputs, device=device).to(wide)
    x[:, ::2] = 0  # what is zero is dropped: half
    norm, gates = torch.ones(inputs, device=device), torch.zeros(2, 2, device=device)
    if kind == "dense":
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        return lambda config: partial(F.linear, x, weight)
    if kind == "row":
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        before = torch.randn(rows, outputs, device=device).to(dtype)
        before[:, ::2] = 0
        worth = torch.ones(outputs, device=device)

        def rows_of_up(config: gated_mlp.Config) -> object:
            acted, kept = select_act(before, worth, gates[0])
            return listed_rows(x, acted, kept, weight, worth, gates, config=config)

        return lambda config: partial(rows_of_up, config)
    if kind == "head":
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        rough = torch.zeros(rows, outputs, device=device)
        wanted = torch.zeros(rows, outputs, dtype=torch.bool, device=device)
        wanted[:, torch.randperm(outputs, device=device)[: outputs // EXACT]] = True
        return lambda config: partial(vocab_head.vocab_head, x, weight, wanted, rough, config=config)
    weight = torch.randn(inputs, outputs, device=device).to(dtype).t()
    scales = (-(-outputs // SCALE_BLOCK), inputs)
    scale = torch.ones(scales, device=device) if dtype == torch.int8 else None

    def by_channel(config: sparse_linear.Config) -> object:
        kept = select(x, norm, gates[0], block=config.block)
        return sparse_linear.sparse_linear(x, kept, weight, scale, config=config)

    return lambda config: partial(by_channel, config)
