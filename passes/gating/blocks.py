"""The gate on blocks of an MLP's neurons: each token computes the blocks that it is predicted to need.

`srr::block_gate` reads the MLP's input, and the neurons of the blocks that it drops are 0 before `down`. This form is
right for any number of rows and saves nothing yet: a backend splits the weights by blocks.
"""

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating.source import GateSource, emit_gates
from srrc.pathways.base import Pathway
from srrc.pathways.neuron import Mlp
from srrc.runtime.gates import Gate

BLOCKS = "/blocks"
"""Suffix of the gate's id."""


def gate_id_of(pathway: Pathway) -> str:
    """The gate on the blocks of this MLP."""
    return f"neuron:{pathway.place}{BLOCKS}"


def fits(pathway: Pathway, source: GateSource) -> bool:
    """Whether the backend splits MLPs by blocks, and the source says how to split this one."""
    gate = gate_id_of(pathway)
    return source.blocks and source.covers(gate) and f"{gate}/probes" in source.vectors


def insert(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context, fake_mode: FakeTensorMode
) -> list[Gate]:
    """Mask what `down` reads."""
    site = pathway.site
    assert isinstance(site, Mlp)
    gate_id = gate_id_of(pathway)
    probes, block_of = (source.vectors[f"{gate_id}/{name}"] for name in ("probes", "of"))
    hidden = site.down.x
    with gm.graph.inserting_before(site.down.node):
        held = emit_gates(gm, gate_id, site.x, 1, context, fake_mode)
        held_probes = emit_tensor(gm, f"{held.name}_probes", probes, fake_mode)
        held_of = emit_tensor(gm, f"{held.name}_of", block_of, fake_mode)
        args = (site.x, held_probes, held.record, held.counter)
        keep = emit(gm.graph, torch.ops.srr.block_gate.default, args, fake_mode)
        mask = emit(gm.graph, torch.ops.aten.index_select.default, (keep, -1, held_of), fake_mode)
        masked = emit(gm.graph, torch.where, (mask, hidden, 0), fake_mode)
    site.down.node.replace_input_with(hidden, masked)
    linears = [linear for linear in (site.gate, site.up, site.down) if linear is not None]
    weights = sum(linear.in_features * linear.out_features for linear in linears) / len(probes)
    size = weights * value_of(site.down.weight).element_size()
    gate = held.gate(gate_id, 0, 2.0 * weights, size)
    return [gate]
