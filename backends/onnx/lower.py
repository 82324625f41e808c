"""From a model's interface to an ONNX graph in which gates are nodes of the domain `srrc`.

The passes are those of `torch.compile`; what they leave goes through torch's exporter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from torch import fx, nn

from srrc.backends.onnx.export import Flat, export
from srrc.backends.onnx.gates import blocks
from srrc.backends.onnx.interfaces import Interface
from srrc.backends.onnx.lower_gates import LowerGates
from srrc.backends.onnx.share_heads import ShareHeads
from srrc.backends.onnx.tidy import tidy
from srrc.backends.onnx.trace import Traced, trace
from srrc.passes.base import Pass
from srrc.passes.context import Context
from srrc.passes.copy_graph import copy_graph
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pipeline import run_passes
from srrc.pathways.base import Pathway
from srrc.reasons import Refusal
from srrc.runtime.gates import Gate


@dataclass(frozen=True, eq=False)
class Marked:
    """An exported graph before its gates become standard operators (`gates.expand`).

    gates: what each of its nodes of the domain `srrc` costs and saves, by id
    """

    interface: Interface
    model: ir.Model
    gates: dict[str, Gate]
    pathways: Sequence[Pathway]
    refusals: Sequence[Refusal]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A captured model with its gates, as torch computes it: what the exported file is compared with."""

    interface: Interface
    traced: Traced
    gm: fx.GraphModule
    context: Context
    source: GateSource | None

    def module(self) -> nn.Module:
        """The gated graph as a module that takes the interface's tensors. Its gates decide by `context.gates`."""
        return Flat(self.interface, self.traced, self.gm)


def prepare(
    interface: Interface, source: Callable[[Traced], GateSource] | None, levels: frozenset[str]
) -> Prepared:
    """Capture, find pathways, and insert the gates that `source` covers (None for no gates).

    Raises ModelError where the model cannot be captured.
    """
    traced = trace(interface)
    interface = replace(interface, axes=traced.axes)
    context = Context(fqns=dict(traced.fqns))
    gated = None if source is None else source(traced)
    passes: list[Pass] = [
        Normalise(),
        FindPathways(),
        InsertGates(gated, levels, traced.fake_mode),
        ShareHeads(),
    ]
    gm = run_passes(passes, fx.GraphModule(traced.gm, copy_graph(traced.gm.graph)), context)
    return Prepared(interface, traced, gm, context, gated)


def lower(prepared: Prepared) -> Marked:
    """Export. Raises ModelError for an operator that ONNX has no counterpart of."""
    traced, context = prepared.traced, prepared.context
    copy = fx.GraphModule(prepared.gm, copy_graph(prepared.gm.graph))
    gm = run_passes((LowerGates(traced.fake_mode, traced.weights),), copy, context)
    model = export(prepared.interface, traced, gm)
    tidy(model)
    if prepared.source is not None:
        blocks.fill(model, context.pathways, prepared.source)
    gates = {gate.id: gate for gate in context.gates}
    return Marked(prepared.interface, model, gates, context.pathways, context.refusals)
