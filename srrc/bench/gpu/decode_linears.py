"""The linears of a decoded token: dense, dense with channels left out, and sparse by the kernels."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.lists import Kept, empty
from srrc.backends.triton.kernels.select import select, select_glu, select_norm
from srrc.backends.triton.kernels.sparse_linear import Workspace, sparse_linear, workspace
from srrc.bench.gpu.sparse_linear import Launch, default_launch

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
    """The kernels, as ops that Inductor calls."""

    def __init__(self, shapes: Sequence[tuple[int, int]], found: Mapping[tuple[int, int], Launch]) -> None:
        """shapes: (inputs, outputs) of each linear."""
        self.ops = [
            _Ops(i, shape, found.get(shape) or default_launch(*shape)) for i, shape in enumerate(shapes)
        ]

    def normed(
        self, which: int, stream: Tensor, added: Tensor, weight: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Linears`."""
        ops = self.ops[which]
        stream, x, *kept = ops.norm(stream, added, gate)
        return stream, ops.linear(x, *kept, weight)

    def plain(self, which: int, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        ops = self.ops[which]
        return ops.linear(x, *ops.plain(x, gate), weight)

    def glu(self, which: int, gate_up: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        """See `Linears`."""
        ops = self.ops[which]
        return ops.linear(*ops.glu(gate_up, gate), weight)


class _Ops:
    """One linear's ops. Its workspace is no argument of them: functionalized, it would be copied at every call."""

    def __init__(self, which: int, shape: tuple[int, int], launch: Launch) -> None:
        inputs, outputs = shape
        block = launch.block
        ones = torch.ones(inputs, device="cuda")
        space: list[Workspace] = []

        def lists(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _flat(empty(like, len(like), inputs, block))

        def linear(x: Tensor, units: Tensor, counts: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
            kept = Kept(units, counts, rows, inputs)
            if not space:
                space.append(workspace(x, kept, outputs, launch.config))
            return sparse_linear(x, kept, weight, config=launch.config, space=space[0])

        def plain(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _flat(select(x, ones, gate, block=block))

        def norm(
            stream: Tensor, added: Tensor, gate: Tensor
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            total, x, kept = select_norm(stream, added, None, ones, gate, epsilon=EPSILON, block=block)
            return total, x, *_flat(kept)

        def glu(gate_up: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            x, kept = select_glu(gate_up, ones, gate, block=block)
            return x, *_flat(kept)

        self.linear = _op(f"linear_{which}", linear, lambda x, *rest: x.new_empty(len(x), outputs))
        self.plain = _op(f"plain_{which}", plain, lambda x, gate: lists(x))
        self.norm = _op(
            f"norm_{which}",
            norm,
            lambda stream, added, gate: (torch.empty_like(stream), torch.empty_like(stream), *lists(stream)),
        )
        self.glu = _op(f"glu_{which}", glu, lambda x, gate: (x.new_empty(len(x), inputs), *lists(x)))


def _flat(kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    return kept.units, kept.counts, kept.rows


_made = itertools.count()
"""An op is never registered twice: the second registration would leave the first one's kernel in place."""


def _op(name: str, run: Callable[..., object], fake: Callable[..., object]) -> Callable[..., Tensor]:
    op = torch.library.custom_op(f"srr_bench::{name}_{next(_made)}", run, mutates_args=())
    op.register_fake(fake)
    return op
