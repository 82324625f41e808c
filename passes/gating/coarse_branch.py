"""A copy of a residual branch whose linears read coarse weights: what stands in where full ones matter little."""

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.ops.coarse_linear import coarse_weight
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor
from srrc.passes.gating.source import GateSource
from srrc.passes.linear_arguments import bias_of
from srrc.pathways.base import Linear, Pathway
from srrc.pathways.channel import ChannelGroup
from srrc.pathways.residual import Branch


def coarse_exit(
    gm: fx.GraphModule,
    pathway: Pathway,
    source: GateSource,
    bits: int,
    context: Context,
    fake_mode: FakeTensorMode,
) -> fx.Node | None:
    """The branch's value from coarse weights, computed at the graph's insertion point; None where it has no linear.

    What the branch keeps for others (keys and values) is shared with the full one.
    """
    site = pathway.site
    assert isinstance(site, Branch)
    inside = set(pathway.nodes)
    linears = {
        linear.node: linear
        for other in context.pathways
        if isinstance(other.site, ChannelGroup)
        for linear in other.site.linears
        if linear.node in inside
    }
    if not linears:
        return None
    copies: dict[fx.Node, fx.Node] = {}
    for node in pathway.nodes:
        linear = linears.get(node)
        if linear is None:
            copies[node] = gm.graph.node_copy(node, lambda each: copies.get(each, each))
        else:
            x = copies.get(linear.x, linear.x)
            copies[node] = _coarse(gm, linear, x, source, bits, fake_mode)
            copies[node].meta = {**node.meta, **copies[node].meta}
    return copies[site.exit]


def _coarse(
    gm: fx.GraphModule,
    linear: Linear,
    x: fx.Node,
    source: GateSource,
    bits: int,
    fake_mode: FakeTensorMode,
) -> fx.Node:
    codes, scale = coarse_weight(source.matrix(linear), bits)
    name = f"srr_coarse_{len([name for name, _ in gm.named_buffers() if name.startswith('srr_coarse_')])}"
    held = [
        emit_tensor(gm, f"{name}_{part}", each, fake_mode)
        for part, each in (("codes", codes), ("scale", scale))
    ]
    bias = bias_of(gm.graph, linear, fake_mode)
    return emit(gm.graph, torch.ops.srr.coarse_linear.default, (x, *held, bias, bits), fake_mode)
