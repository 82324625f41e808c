"""Gates on input channels: the linears that read one tensor become one `srr::channel_linear`."""

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.ops.emphasis import FLOPS as EMPHASIS
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating.source import GateSource, emit_gates
from srrc.passes.linear_arguments import bias_of, split_columns, weight_of
from srrc.pathways.base import Pathway
from srrc.pathways.channel import ChannelGroup
from srrc.runtime.gates import Gate


def gate_ids(pathway: Pathway) -> list[str]:
    """One gate, on the shared input."""
    return [f"channel:{pathway.place}"]


def insert(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context, fake_mode: FakeTensorMode
) -> list[Gate]:
    """Replace the group's linears; the ones another gate has replaced already are left out."""
    site = pathway.site
    assert isinstance(site, ChannelGroup)
    (gate_id,) = gate_ids(pathway)
    alive = set(gm.graph.nodes)
    linears = tuple(linear for linear in site.linears if linear.node in alive)
    norm = source.vectors.get(f"{gate_id}/norm")
    if norm is None:
        norm = source.column_norm(site.linears)
    with gm.graph.inserting_before(linears[0].node):
        weights = [weight_of(gm.graph, linear, fake_mode) for linear in linears]
        biases = [bias_of(gm.graph, linear, fake_mode) for linear in linears]
        held = emit_gates(gm, gate_id, site.x, 1, context, fake_mode)
        norm_node = emit_tensor(gm, f"{held.name}_norm", norm, fake_mode)
        probe = source.vectors.get(f"{gate_id}/emphasis")
        emphasis = None if probe is None else emit_tensor(gm, f"{held.name}_emphasis", probe, fake_mode)
        args = (site.x, weights, biases, norm_node, held.record, held.counter, emphasis)
        result = emit(gm.graph, torch.ops.srr.channel_linear.default, args, fake_mode)
        split_columns(gm.graph, result, linears, fake_mode)
    outputs = sum(linear.out_features for linear in linears)
    size = outputs * value_of(weights[0]).element_size()
    return [held.gate(gate_id, 0, 2.0 * outputs, size, overhead=1.0 if probe is None else 1.0 + EMPHASIS)]
