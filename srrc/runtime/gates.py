"""The gates of a compiled graph: the tensors they decide by, and what they have counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

import torch

OPEN = (-1.0, 0.0)
"""The gate record that keeps everything: a negative threshold, and no guard to fail."""


@dataclass(frozen=True)
class Gate:
    """One gate as it stands in one compiled graph.

    id:           "kind:place", as in the profile ("neuron:place/input" and so on for the gates of an MLP)
    phase:        "decode" or "prefill": which thresholds of a plan it takes
    record:       float32 [2] (threshold, min_kept), a row of the tensor that the gated op reads
    counters:     int64 [3] (offered, executed, guard_failed), a row of the tensor that the op adds to; where there is
                  a fourth, it counts the rows for which the gate was at work: those that paid what is fixed
    flops, bytes: what one unit costs in one row, and one unit's weights
    overhead:     FLOPs of deciding, per offered unit
    fixed_flops, fixed_bytes: what a row costs that the gate is at work on, however many units it drops
    spared_bytes: what such a row does not read, however many units it keeps: the dense weights are wider than the
                  copy that the units are read from
    rows:         rows that are computed together: counters count units of each, weights are read once for all
    """

    id: str
    phase: str
    record: torch.Tensor
    counters: torch.Tensor
    flops: float
    bytes: float
    overhead: float = 1.0
    fixed_flops: float = 0.0
    fixed_bytes: float = 0.0
    spared_bytes: float = 0.0
    rows: int = 1

    @property
    def saved(self) -> tuple[float, float]:
        """(FLOPs, bytes) saved so far, what deciding and being there cost taken off."""
        offered, executed, _, *rest = self.counters.tolist()
        at_work = rest[0] if rest else 0
        flops = (offered - executed) * self.flops - offered * self.overhead - at_work * self.fixed_flops
        read_once = (offered - executed) * self.bytes + at_work * self.spared_bytes
        return flops, read_once / self.rows - at_work * self.fixed_bytes

    def without_savings(self) -> "Gate":
        """The same gate where what it drops is computed all the same."""
        return replace(self, flops=0.0, bytes=0.0, overhead=0.0)


class GateStore:
    """The gate tensors of one graph, made once: every specialisation of it decides by and counts in the same ones."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """device: of the graph."""
        self._device = device
        self._tensors: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def tensors(
        self, owner: str, phase: str, gates: int, counted: int = 3
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Records (float32 [gates, 2], open at first) and counters (int64 [gates, counted]) of pathway `owner`."""
        made = self._tensors.get((owner, phase))
        if made is None:
            records = torch.tensor([OPEN] * gates, dtype=torch.float32, device=self._device)
            made = (records, torch.zeros((gates, counted), dtype=torch.int64, device=self._device))
            self._tensors[owner, phase] = made
        return made


def set_records(gates: Sequence[Gate], thresholds: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Write a plan's records, {phase: {gate id: (threshold, min_kept)}}, into the gates' tensors.

    A gate that the plan does not name keeps everything. Nothing recompiles: gated ops read these tensors.
    """
    values = [thresholds.get(gate.phase, {}).get(gate.id, OPEN) for gate in gates]
    write([gate.record for gate in gates], values)


def reset_counters(gates: Sequence[Gate]) -> None:
    """Start counting anew."""
    for gate in gates:
        gate.counters.zero_()


def read(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
    """What small tensors [n] of one dtype and device hold: records or counters, for which a card is waited for once."""
    held = torch.cat(list(tensors)).tolist() if tensors else []
    ends = [*accumulate(len(tensor) for tensor in tensors)]
    return [held[start:end] for start, end in pairwise((0, *ends))]


def write(tensors: Sequence[torch.Tensor], values: Sequence[Sequence[float]]) -> None:
    """Give small tensors [n] of one dtype and device these values, in one copy to where they are."""
    if tensors:
        flat = torch.tensor([*chain(*values)], dtype=tensors[0].dtype).to(tensors[0].device)
        restore(tensors, torch.split(flat, [len(tensor) for tensor in tensors]))


def keep(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Copies of small tensors [n] of one dtype and device, for `restore`."""
    return torch.split(torch.cat(list(tensors)), [len(tensor) for tensor in tensors]) if tensors else ()


def restore(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy values into tensors, of a card in a launch or two."""
    if tensors:
        torch._foreach_copy_(list(tensors), list(values))
