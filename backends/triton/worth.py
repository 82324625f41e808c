"""Whether a gated op is worth having on this card: its kernels with half of the units dropped, against dense products.

Each linear of an op is measured on its own, lists included, at each of its configurations, and beside it what cuBLAS
takes; the quickest is kept, per card (`tune.py`). Weights are random: times do not depend on them. A head's kernels are
measured so too, and then the whole of it, since much of what it does is torch's.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
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
from srrc.backends.triton.ops.vocab_head import head_choice, logits_of
from srrc.control.gate_time import GateTime
from srrc.ops.vocab_head import SCALE_BLOCK

log = logging.getLogger("srrc.cache")

Timer = Callable[[tune.Call], float]


@dataclass(frozen=True)
class AsIs:
    """The configuration of what has none to choose."""


@dataclass(frozen=True)
class Part:
    """One launch of an op: x [rows, inputs] with weights [outputs, inputs], all in all.

    kind:   "channel" (read by channel), "row" (by neuron), "dense", or "head"; and of a head "exact" (by candidate)
            and "coarse" (by channel)
    dense:  outputs of each of the products that it stands for
    gate:   the row of the op's gate whose units it leaves out
    coarse: dtype of a head's coarse copy
    tokens: of that copy, which may have more than the head
    exact:  how many tokens of a head are exact at least
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    dense: tuple[int, ...] = ()
    gate: int = 0
    coarse: torch.dtype = torch.int8
    tokens: int = 0
    exact: int = 0


@dataclass(frozen=True)
class Took:
    """Milliseconds of a part with half of its units dropped, infinite where no kernel runs; of its dense products.

    failed: what was raised where no kernel runs
    """

    part: Part
    gated: float
    dense: float
    failed: str = ""

    @property
    def saves(self) -> tuple[float, float]:
        """Milliseconds that it takes less with a unit dropped than with none; and with half of them."""
        if self.part.kind != "head":
            return 0.0, 0.5 * self.dense
        # Without a unit dropped all is exact; otherwise the bytes of the coarse copy are read, less what is dropped.
        narrow = self.dense * self.part.coarse.itemsize / self.part.dtype.itemsize
        return max(0.0, self.dense - narrow), max(0.0, self.dense - 0.5 * narrow)


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
    """The one part of an srr::vocab_head that is called with these."""
    (outputs, inputs), coarse, exact = weight.shape, given[3], given[-1]
    copy = {"coarse": coarse.dtype, "tokens": len(coarse), "exact": exact}
    return [Part("head", _rows(x), inputs, outputs, x.dtype, (outputs,), **copy)]


def _linears(x: Tensor, weights: Sequence[Tensor]) -> Part:
    kind = "channel" if laid_out_by_input(weights[0]) else "dense"
    sizes = tuple(weight.shape[0] for weight in weights)
    return Part(kind, _rows(x), weights[0].shape[1], sum(sizes), x.dtype, sizes)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def measure(parts: Sequence[Part], device: torch.device, timer: Timer | None = None) -> list[Took] | None:
    """Measure what was not measured yet on such a card; None where the card has no room for it.

    timer: as `tune.tune` has it
    """
    found = []
    try:
        for part in parts:
            gated, failed = _milliseconds(part, device, timer)
            products = [replace(part, kind="dense", outputs=size) for size in part.dense]
            dense = [_milliseconds(product, device, timer)[0] for product in products]
            found.append(Took(part, gated, sum(dense), failed))
    except torch.OutOfMemoryError:
        log.info("%s are not measured: the card has no room for another such weight", parts)
        return None
    return found


def worth_it(measured: Sequence[Took] | None) -> bool:
    """Whether parts take less than dense products. True where nothing is known against them."""
    return measured is None or sum(each.gated for each in measured) < sum(each.dense for each in measured)


def gate_time(parts: Sequence[Took], rows: int) -> GateTime | None:
    """What a gate over these parts takes and saves; None where it skips nothing in them, or where that is not known.

    An open gate runs the same kernels, and they read all: so much longer they take than with half of it dropped.
    """
    skipping = [each for each in parts if each.part.kind != "dense"]
    if not skipping or not all(math.isfinite(each.gated + each.dense) for each in skipping):
        return None
    half = sum(each.gated for each in skipping)
    few, most = (sum(saved) for saved in zip(*(each.saves for each in skipping), strict=True))
    opened = half + most
    seconds = ((0.0, 1e-3 * (opened - few)), (0.5, 1e-3 * half))
    return GateTime(1e-3 * opened, seconds, rows)


def _fields(part: Part) -> tuple[Any, ...]:
    return part.kind, part.rows, part.inputs, part.outputs, part.dtype


def _milliseconds(part: Part, device: torch.device, timer: Timer | None) -> tuple[float, str]:
    """Of a part at its best, measured once on such a card; infinite where no kernel runs, and then what was raised."""
    kind, rows, inputs, outputs, dtype = _fields(part)
    chosen: tuple[str, Sequence[Any], Any]
    if kind == "dense":
        name = tune.key("dense linear", rows=rows, inputs=inputs, outputs=outputs, dtype=dtype)
        chosen = name, (AsIs(),), AsIs()
    elif kind == "row":
        chosen = rows_choice(rows, inputs, outputs, dtype)
    elif kind == "exact":
        chosen = head_choice(rows, outputs, dtype)
    elif kind == "head":
        _milliseconds(replace(part, kind="exact"), device, timer)
        _milliseconds(replace(part, kind="coarse", dtype=part.coarse, outputs=part.tokens), device, timer)
        sizes = {
            "rows": rows,
            "inputs": inputs,
            "outputs": outputs,
            "tokens": part.tokens,
            "exact": part.exact,
        }
        chosen = tune.key("head", **sizes, dtype=dtype, coarse=part.coarse), (AsIs(),), AsIs()
    else:
        chosen = choice(rows, inputs, outputs, dtype)
    name, space, default = chosen
    made = cache(lambda: _calls(part, device))  # weights of its size, where anything is to be measured

    def call(config: Any) -> tune.Call:
        return made()(config)

    errors: list[Exception] = []
    tune.tune(name, space, default, device, call, timer=timer, failed=errors)
    found = tune.measured(name, device)
    if found is not None:
        return found, ""
    return math.inf, repr(errors[-1]) if errors else "the card does not tell its name"


def _calls(part: Part, device: torch.device) -> Callable[[Any], tune.Call]:
    """What makes the call of a part that is to be timed, with a configuration."""
    kind, rows, inputs, outputs, dtype = _fields(part)
    wide = torch.float32 if kind == "coarse" else dtype
    plain: dict[str, Any] = {"device": device, "dtype": torch.float32}
    draw = torch.Generator(device).manual_seed(0)  # the user's own goes on as if nothing had been drawn
    random = partial(torch.randn, generator=draw, **plain)
    x = random(rows, inputs).to(wide)
    x[:, ::2] = 0  # what is zero is dropped: half
    norm, gates = torch.ones(inputs, **plain), torch.zeros(2, 2, **plain)
    if kind == "dense":
        weight = random(outputs, inputs, dtype=dtype)
        return lambda config: partial(F.linear, x, weight)
    if kind == "row":
        weight = random(outputs, inputs, dtype=dtype)
        before = random(rows, outputs).to(dtype)
        before[:, ::2] = 0
        worth = torch.ones(outputs, **plain)

        def rows_of_up(config: gated_mlp.Config) -> object:
            acted, kept = select_act(before, worth, gates[0])
            return listed_rows(x, acted, kept, weight, worth, gates, config=config)

        return lambda config: partial(rows_of_up, config)
    if kind == "exact":
        weight = random(outputs, inputs, dtype=dtype)
        rough = torch.zeros(rows, outputs, **plain)
        wanted = torch.zeros(rows, outputs, dtype=torch.bool, device=device)
        wanted[:, torch.randperm(outputs, generator=draw, device=device)[: part.exact]] = True
        return lambda config: partial(vocab_head.vocab_head, x, weight, wanted, rough, config=config)
    if kind == "head":
        weight = random(outputs, inputs, dtype=dtype)
        rotation = torch.eye(inputs, device=device, dtype=dtype)
        coarse, scale = _by_channel(random(inputs, part.tokens), part.coarse)
        bias = torch.zeros(part.tokens, **plain)
        counters = torch.zeros(4, dtype=torch.int64, device=device)
        given = (weight, None, coarse, scale, bias, norm, gates[0], counters, part.exact)
        return lambda config: partial(whole_head, x, rotation, given)
    weight, scale = _by_channel(random(inputs, outputs), dtype)

    def by_channel(config: sparse_linear.Config) -> object:
        kept = select(x, norm, gates[0], block=config.block)
        return sparse_linear.sparse_linear(x, kept, weight, scale, config=config)

    return lambda config: partial(by_channel, config)


def whole_head(x: Tensor, rotation: Tensor, given: Sequence[Any]) -> Tensor:
    """A head as it runs, but that cuBLAS rotates here: the op's sum, of which Inductor makes one kernel, is written out
    where it is not compiled. Both read the rotation once, for all rows, which is what takes their time.
    """
    return logits_of(x, F.linear(x, rotation).to(torch.float32), *given)


def _by_channel(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight by channel of values float32 [inputs, outputs], and if it is int8 its scales."""
    inputs, outputs = values.shape
    scales = values.new_ones(-(-outputs // SCALE_BLOCK), inputs)
    return values.to(dtype).t(), scales if dtype == torch.int8 else None
