"""The linears of a decoded token: dense, dense with channels left out, and sparse by the kernels."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.select import select, select_act, select_norm
from srrc.backends.triton.kernels.sparse_linear import Config, default_config, sparse_linear

EPSILON = 1e-5


class Linears(Protocol):
    """What a layer asks for. which: a layer's linears are 0 to 3, the head is 4; weight [N, K]; gate [2]."""

    def normed(
        self, which: int, stream: Tensor, added: Tensor, weight: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(stream + added, the product with its RMS norm)."""
        ...

    def plain(self, which: int, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """The product with x."""
        ...

    def glu(self, which: int, gate_up: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """The product with silu(left half) * right half."""
        ...


class Dense:
    """What is measured against."""

    def normed(
        self, which: int, stream: Tensor, added: Tensor, weight: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Linears`."""
        stream = stream + added
        wide = stream.float()
        x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(stream.dtype)
        return stream, self.plain(which, x, weight, gate)

    def plain(self, which: int, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        return F.linear(x, weight)

    def glu(self, which: int, gate_up: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        left, right = gate_up.chunk(2, -1)
        return self.plain(which, F.silu(left) * right, weight, gate)


@dataclass(frozen=True)
class Calibrating(Dense):
    """Sets each threshold to the quantile of what the linear is given, and leaves out what is below."""

    dropped: float

    def plain(self, which: int, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        if self.dropped > 0:
            # Between two values: at one, rounding would decide.
            least = round(self.dropped * x.shape[-1])
            gate[0] = x.abs().float().sort().values[0, least - 1 : least + 1].mean()
        else:
            gate[0] = -1.0
        return F.linear(torch.where(x.abs() > gate[0], x, 0.0), weight)


class Sparse:
    """The kernels, as ops that Inductor sees through.

    told: of each linear, a gate's counters: channels that it was offered, and those that it read
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        found: Mapping[tuple[int, int], Config],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """shapes: (inputs, outputs) of each linear; found: how those are launched that were measured, of `dtype`."""
        self.ones = [torch.ones(inputs, device="cuda") for inputs, _ in shapes]
        self.told = [torch.zeros(3, dtype=torch.int64, device="cuda") for _ in shapes]
        self.ops = [_Ops(found.get(shape) or default_config(*shape, dtype)) for shape in shapes]

    def skipped(self) -> list[float]:
        """The fraction of each linear's channels that were left out since this was asked last."""
        found = [1 - int(told[1]) / max(1, int(told[0])) for told in self.told]
        for told in self.told:
            told.zero_()
        return found

    def normed(
        self, which: int, stream: Tensor, added: Tensor, weight: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Linears`."""
        found: tuple[Tensor, Tensor] = self.ops[which].norm(
            stream, added, weight, self.ones[which], gate, self.told[which]
        )
        return found

    def plain(self, which: int, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        found: Tensor = self.ops[which].plain(x, weight, self.ones[which], gate, self.told[which])
        return found

    def glu(self, which: int, gate_up: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        found: Tensor = self.ops[which].glu(gate_up, weight, self.ones[which], gate, self.told[which])
        return found


class _Ops:
    """One linear's ops: its lists, and the linear over them."""

    def __init__(self, config: Config) -> None:
        block = config.block

        def linear(x: Tensor, kept: Kept, weight: Tensor, gate: Tensor, told: Tensor) -> Tensor:
            return sparse_linear(x, kept, weight, gate=gate, counters=told, config=config)

        def plain(x: Tensor, weight: Tensor, ones: Tensor, gate: Tensor, told: Tensor) -> Tensor:
            return linear(x, select(x, ones, gate, block=block), weight, gate, told)

        def norm(
            stream: Tensor, added: Tensor, weight: Tensor, ones: Tensor, gate: Tensor, told: Tensor
        ) -> tuple[Tensor, Tensor]:
            total, x, kept = select_norm(stream, added, None, ones, gate, epsilon=EPSILON, block=block)
            return total, linear(x, kept, weight, gate, told)

        def glu(gate_up: Tensor, weight: Tensor, ones: Tensor, gate: Tensor, told: Tensor) -> Tensor:
            inner, up = gate_up.chunk(2, -1)
            x, kept = select_act(inner, ones, gate, up, block=block)
            return linear(x, kept, weight, gate, told)

        self.plain, self.norm, self.glu = _op(plain), _op(norm), _op(glu)


_made = itertools.count()
"""An op is never registered twice: the second registration would leave the first one's kernel in place."""


def _op(run: Callable[..., Any]) -> Callable[..., Any]:
    return torch.library.triton_op(f"srr_bench::{run.__name__}_{next(_made)}", run, mutates_args=("told",))
