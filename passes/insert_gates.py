"""Puts gates on the pathways that a profile (or a calibration run) covers: FX nodes become gated ops.

Each gate gets its own small tensors, held by the graph: the record it decides by, and the counters it adds to.
A budget is set by writing to the records, so changing it recompiles nothing. What is not gated says why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx
from torch._subclasses import FakeTensorMode

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.passes.context import Context
from srrc.passes.gating import channel, neuron, residual, vocab
from srrc.passes.gating.source import GateSource
from srrc.passes.rows import has_few_rows, has_fixed_rows
from srrc.pathways.base import Pathway
from srrc.pathways.residual import Branch
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import Gate

Insert = Callable[[fx.GraphModule, Pathway, GateSource, Context, FakeTensorMode], list[Gate]]

GATED: dict[str, tuple[str, Callable[[Pathway], list[str]], Insert]] = {
    "residual": ("layer", residual.gate_ids, residual.insert),
    "neuron": ("neuron", neuron.gate_ids, neuron.insert),
    "vocab": ("vocab", vocab.gate_ids, vocab.insert),
    "channel": ("channel", channel.gate_ids, channel.insert),
}
"""Kind -> (level that switches it, its gates' ids, how they are inserted), in order of precedence: the gates of an
MLP and of the vocabulary head cover what a channel gate on the same linears would."""

AROUND = frozenset({"residual"})
"""Kinds whose gates stand around others': they claim no node, and are put in while the branch is as it was found."""


@dataclass(frozen=True)
class InsertGates:
    """Fills `context.gates`, and adds to `context.refusals` a reason for each pathway that gets none.

    source: None where nothing may be gated (no budget was asked for)
    levels: the options' routing levels
    refused: kinds that the backend has no gates for, and why
    fixed_rows: whether its kernels must know how many rows there are
    """

    source: GateSource | None
    levels: frozenset[str]
    fake_mode: FakeTensorMode
    refused: Mapping[str, Reason] = field(default_factory=dict)
    fixed_rows: bool = False
    name: str = "insert_gates"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place."""
        taken: set[fx.Node] = set()
        source = None if self.source is None else self._at_levels(self.source)
        for kind in dict.fromkeys([*GATED, *(pathway.kind for pathway in context.pathways)]):
            for pathway in (p for p in context.pathways if p.kind == kind):
                reason = self._refuse(pathway, taken, context)
                if reason is not None or source is None:
                    context.refusals.append(Refusal(pathway.place, kind, reason or Reason.NO_BUDGET))
                    continue
                made = GATED[kind][2](gm, pathway, source, context, self.fake_mode)
                context.gates += made
                if made and kind not in AROUND:
                    taken.update(pathway.nodes)
        return gm

    def _at_levels(self, source: GateSource) -> GateSource:
        """The source without the gates that the options switch off: a branch's cost depends on which there are."""
        return replace(
            source, covers=lambda gate: source.covers(gate) and GATED[gate.split(":")[0]][0] in self.levels
        )

    def _refuse(self, pathway: Pathway, taken: set[fx.Node], context: Context) -> Reason | None:
        if pathway.kind not in GATED:
            return Reason.NOT_GATED_YET
        if self.source is None:
            return Reason.NO_BUDGET
        if pathway.kind in self.refused:
            return self.refused[pathway.kind]
        level, ids, _ = GATED[pathway.kind]
        if level not in self.levels:
            return Reason.LEVEL_OFF
        if pathway.kind not in AROUND and taken.issuperset(pathway.nodes):
            return Reason.OVERLAPS
        if not any(self.source.covers(gate_id) for gate_id in ids(pathway)):
            return Reason.NO_PROFILE
        if not self.source.many_rows and not has_few_rows(_decided_by(pathway), context.sizes):
            return Reason.MANY_ROWS
        if self.fixed_rows and not has_fixed_rows(_decided_by(pathway)):
            return Reason.UNKNOWN_ROWS
        if self.source.fuel is not None and len(context.gates) >= self.source.fuel:
            return Reason.FUEL_SPENT
        return None


def _decided_by(pathway: Pathway) -> fx.Node:
    """The value whose rows the gate decides over."""
    return pathway.site.entry if isinstance(pathway.site, Branch) else pathway.inputs[0]
