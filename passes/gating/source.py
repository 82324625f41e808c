"""What gates are made from: a profile, or a calibration run that has none yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.emit import emit_tensor
from srrc.passes.rows import has_few_rows
from srrc.pathways.base import Linear
from srrc.runtime.gates import OPEN, Gate


@dataclass(frozen=True)
class GateSource:
    """What the gates of one graph are made from.

    covers:  whether a gate id has a curve (or is to get one)
    vectors: "gate id/name" -> what scoring needs and the weights alone do not give
    weights: placeholder name -> the parameter itself
    fuel:    how many gates may be inserted, None for all of them (`SRRC_FUEL`)
    """

    covers: Callable[[str], bool]
    weights: Mapping[str, torch.Tensor]
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fuel: int | None = None

    def column_norm(self, linears: tuple[Linear, ...]) -> torch.Tensor:
        """L2 norm of each input channel over all the weights that read it: float32 [K]."""
        total = torch.zeros((), dtype=torch.float32)
        for linear in linears:
            weight = self.weights[linear.weight.name].detach()
            weight = weight.t() if linear.transposed else weight
            weight = weight if linear.rows is None else weight[slice(*linear.rows)]
            total = total + torch.linalg.vector_norm(weight, dim=0, dtype=torch.float32) ** 2
        return total.sqrt()


def phase_of(x: fx.Node) -> str:
    """Which thresholds of a plan a gate on `x` takes."""
    return "decode" if has_few_rows(x) else "prefill"


def emit_gates(
    gm: fx.GraphModule, gates: int, fake_mode: FakeTensorMode
) -> tuple[torch.Tensor, torch.Tensor, fx.Node, fx.Node]:
    """Fresh records (float32 [gates, 2], open) and counters (int64 [gates, 3]); one gate's have no first axis.

    Returns both tensors and their nodes at the insertion point.
    """
    records = torch.tensor([OPEN] * gates, dtype=torch.float32)
    counters = torch.zeros((gates, 3), dtype=torch.int64)
    held = (records, counters) if gates > 1 else (records[0], counters[0])
    serial = sum(1 for name, _ in gm.named_buffers() if name.startswith("srr_record_"))
    record_node = emit_tensor(gm, f"srr_record_{serial}", held[0], fake_mode)
    counter_node = emit_tensor(gm, f"srr_counters_{serial}", held[1], fake_mode)
    return records, counters, record_node, counter_node


def make_gate(
    gate_id: str, x: fx.Node, records: torch.Tensor, counters: torch.Tensor, row: int, flops: float, size: float
) -> Gate:
    """The gate that stands on row `row` of these tensors. flops and size (bytes): what one unit costs in one row."""
    return Gate(gate_id, phase_of(x), records[row], counters[row], float(flops), float(size))
