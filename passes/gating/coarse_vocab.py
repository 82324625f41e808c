"""The gate that lets a vocabulary head read a coarse copy of its weight, and the best tokens' rows of the full one."""

import dataclasses

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.ops.coarse_linear import coarse_weight
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating.source import GateSource, emit_gates
from srrc.passes.linear_arguments import bias_of, replace, weight_of
from srrc.pathways.base import Pathway
from srrc.pathways.vocab import Head
from srrc.runtime.gates import Gate

EXACT = 32
"""How many tokens get exact logits: with 8 bits the best of all is the best of the coarse ones nearly always."""

BITS = 8
"""Where the profile does not say."""


def insert(
    gm: fx.GraphModule,
    gate_id: str,
    pathway: Pathway,
    source: GateSource,
    context: Context,
    fake_mode: FakeTensorMode,
) -> Gate:
    """Replace the head by one `srr::coarse_head`."""
    site = pathway.site
    assert isinstance(site, Head)
    linear = site.linear
    held_bits = source.vectors.get(f"vocab:{pathway.place}/bits")
    bits = BITS if held_bits is None else int(held_bits)
    weight = source.matrix(linear)
    codes, scale = coarse_weight(weight, bits)
    with gm.graph.inserting_before(linear.node):
        full, bias = weight_of(gm.graph, linear, fake_mode), bias_of(gm.graph, linear, fake_mode)
        held = emit_gates(gm, gate_id, linear.x, 1, context, fake_mode)
        nodes = [
            emit_tensor(gm, f"{held.name}_{name}", each, fake_mode)
            for name, each in (("codes", codes), ("scale", scale))
        ]
        args = (linear.x, full, bias, *nodes, held.record, held.counter, EXACT, bits)
        result = emit(gm.graph, torch.ops.srr.coarse_head.default, args, fake_mode)
    element = value_of(full).element_size()
    replace(gm.graph, pathway.nodes, linear.node, result)
    spared = float(weight.numel() * element - codes.numel() - EXACT * linear.in_features * element)
    return dataclasses.replace(held.gate(gate_id, 0, 0.0, spared), overhead=0.0)
