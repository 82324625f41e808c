"""What gates are made from: a profile, or a calibration run that has none yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.context import Context
from srrc.passes.emit import emit_tensor
from srrc.passes.rows import has_few_rows, rows_of
from srrc.pathways.base import Linear
from srrc.runtime.gates import Gate

_BLOCK = 1 << 16
"""Elements that are widened to float32 at once. Whole weights, one after another with small tensors kept between them,
tear holes of hundreds of megabytes into the heap."""


@dataclass(frozen=True)
class GateSource:
    """What the gates of one graph are made from.

    covers:  whether a gate id has a curve (or is to get one)
    vectors: "gate id/name" -> what scoring needs and the weights alone do not give
    weights: placeholder name -> the parameter itself
    many_rows: whether to gate what has many rows too, where skipping saves no time: for calibration, which looks at
             many tokens at once
    coarse:  whether coarse weights may stand in for a branch's own: the backend has ops for them
    blocks:  whether MLPs are gated by blocks of neurons: the backend splits their weights
    fuel:    how many gates may be inserted, None for all of them (`SRRC_FUEL`)
    """

    covers: Callable[[str], bool]
    weights: Mapping[str, torch.Tensor]
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    many_rows: bool = False
    coarse: bool = False
    blocks: bool = False
    fuel: int | None = None

    def matrix(self, linear: Linear) -> torch.Tensor:
        """The weight of a linear as [N, K], whichever way the model holds it: a view."""
        weight = self.weights[linear.weight.name].detach()
        weight = weight.t() if linear.transposed else weight
        return weight if linear.rows is None else weight[slice(*linear.rows)]

    def column_norm(self, linears: tuple[Linear, ...]) -> torch.Tensor:
        """L2 norm of each input channel over all the weights that read it: float32 [K]."""
        total = torch.zeros((), dtype=torch.float32, device=self.matrix(linears[0]).device)
        for linear in linears:
            weight = self.matrix(linear)
            height = max(1, _BLOCK // weight.shape[1])
            for start in range(0, len(weight), height):
                block = weight[start : start + height]
                total = total + torch.linalg.vector_norm(block, dim=0, dtype=torch.float32) ** 2
        return total.sqrt()


def phase_of(x: fx.Node, context: Context) -> str:
    """Which thresholds of a plan a gate on `x` takes."""
    return "decode" if has_few_rows(x, context.sizes) else "prefill"


@dataclass(frozen=True)
class GateTensors:
    """One pathway's gate tensors, in the graph and outside it.

    records float32 [gates, 2] and counters int64 [gates, 3 or 4]; `record` and `counter` are their nodes (of one
    gate alone: one row of each). `name` prefixes whatever else the pathway's gates hold in the graph.
    """

    phase: str
    records: torch.Tensor
    counters: torch.Tensor
    record: fx.Node
    counter: fx.Node
    name: str
    rows: int

    def gate(self, gate_id: str, row: int, flops: float, size: float, overhead: float = 1.0) -> Gate:
        """The gate on row `row`. flops and size (bytes): what one unit costs in one row of the input; overhead: FLOPs
        of deciding, a unit.
        """
        record, counters = self.records[row], self.counters[row]
        return Gate(
            gate_id, self.phase, record, counters, float(flops), float(size), overhead, rows=self.rows
        )


def emit_gates(
    gm: fx.GraphModule,
    owner: str,
    x: fx.Node,
    gates: int,
    context: Context,
    fake_mode: FakeTensorMode,
    counters: int = 3,
) -> GateTensors:
    """Put the gate tensors of pathway `owner` ("kind:place") into the graph at the insertion point.

    counters: how many each of its gates has
    """
    phase = phase_of(x, context)
    records, counts = context.gate_store.tensors(owner, phase, gates, counters)
    name = f"srr_{len([name for name, _ in gm.named_buffers() if name.startswith('srr_')])}"
    one = gates == 1
    record = emit_tensor(gm, f"{name}_record", records[0] if one else records, fake_mode)
    counter = emit_tensor(gm, f"{name}_counters", counts[0] if one else counts, fake_mode)
    rows = rows_of(x, context.sizes) if has_few_rows(x, context.sizes) else None
    return GateTensors(phase, records, counts, record, counter, name, rows or 1)
