"""The gate on a residual branch: `srr::layer_gate` reads the stream, and what the branch adds is masked by it.

This form is right for any number of rows and saves nothing yet: `passes.enclose` makes of it, for few rows, a region
that is not run at all.
"""

import dataclasses

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.annotate_cost import captured_sizes
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating.coarse_branch import coarse_exit
from srrc.passes.gating.source import GateSource, emit_gates
from srrc.passes.rows import FEW_ROWS, rows_of
from srrc.pathways.attention import Attention
from srrc.pathways.base import ZERO_COST, Cost, Pathway
from srrc.pathways.channel import ChannelGroup
from srrc.pathways.cost import node_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.residual import Branch
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import Gate

COARSE = "/coarse"
"""Suffix of the gate that lets a branch run with coarse weights, where the other leaves it out."""


def gate_ids(pathway: Pathway) -> list[str]:
    """The gate that leaves the branch out, and the one inside of it that lets coarse weights stand in for its own."""
    return [f"residual:{pathway.place}", f"residual:{pathway.place}{COARSE}"]


def insert(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context, fake_mode: FakeTensorMode
) -> list[Gate]:
    """Mask the branch's value in its sum. No gate, but a refusal, where the profile has no probe or none fits."""
    site = pathway.site
    assert isinstance(site, Branch)
    out, coarse = gate_ids(pathway)
    probe = source.vectors.get(f"{out}/probe")
    if probe is None:
        return _refused(context, pathway, Reason.NO_PROFILE)
    cost = _row_cost(gm, pathway, source, context) if unfit(site) is None else None
    if cost is None or value_of(site.entry).shape[-1] != len(probe) - 1:
        return _refused(context, pathway, Reason.UNSUPPORTED_SHAPE)
    flops, size = cost
    gates: list[Gate] = []
    value = site.exit
    bits = source.vectors.get(f"{out}/bits")
    if source.coarse and source.covers(coarse) and bits is not None:
        with gm.graph.inserting_before(site.add):
            stand_in = coarse_exit(gm, pathway, source, int(bits), context, fake_mode)
        if stand_in is not None:
            saved = size * (1.0 - float(bits) / (8.0 * value_of(site.exit).element_size()))
            value, gate = _masked(gm, pathway, coarse, value, stand_in, probe, context, fake_mode)
            gates.append(dataclasses.replace(gate, bytes=saved))
    if source.covers(out):
        value, gate = _masked(gm, pathway, out, value, 0, probe, context, fake_mode)
        gates.append(dataclasses.replace(gate, flops=float(flops), bytes=float(size)))
    return gates or _refused(context, pathway, Reason.NOT_GATED_YET)


def _masked(
    gm: fx.GraphModule,
    pathway: Pathway,
    gate_id: str,
    value: fx.Node,
    other: fx.Node | int,
    probe: torch.Tensor,
    context: Context,
    fake_mode: FakeTensorMode,
) -> tuple[fx.Node, Gate]:
    """Put a gate on `value`, with `other` for the rows that it drops: what goes into the sum now, and the gate."""
    site = pathway.site
    assert isinstance(site, Branch)
    with gm.graph.inserting_before(_first_after_entry(gm, pathway, site)):
        held = emit_gates(gm, gate_id, site.entry, 1, context, fake_mode)
        held_probe = emit_tensor(gm, f"{held.name}_probe", probe, fake_mode)
        args = (site.entry, held_probe, held.record, held.counter)
        keep = emit(gm.graph, torch.ops.srr.layer_gate.default, args, fake_mode)
    with gm.graph.inserting_before(site.add):
        masked = emit(gm.graph, torch.where, (keep, value, other), fake_mode)
    site.add.replace_input_with(value, masked)
    return masked, dataclasses.replace(held.gate(gate_id, 0, 0.0, 0.0), overhead=4.0 * (len(probe) - 1))


def _refused(context: Context, pathway: Pathway, reason: Reason) -> list[Gate]:
    context.refusals.append(Refusal(pathway.place, "residual", reason))
    return []


def unfit(site: Branch) -> Reason | None:
    """Why a gate cannot read this branch's stream row by row, or None where it can."""
    entry, end = value_of(site.entry), value_of(site.exit)
    if isinstance(entry.shape[-1], torch.SymInt) or not 2 <= entry.dim() <= 3:
        return Reason.UNSUPPORTED_SHAPE  # an image's rows are no tokens
    return None if entry.shape[:-1] == end.shape[:-1] else Reason.UNSUPPORTED_SHAPE


def _first_after_entry(gm: fx.GraphModule, pathway: Pathway, site: Branch) -> fx.Node:
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    start = order[site.entry]
    return min((node for node in pathway.nodes if order[node] > start), key=order.__getitem__)


def _row_cost(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context
) -> tuple[float, float] | None:
    """(FLOPs, bytes) of what a row skips with the branch; None where they depend on sizes that only the data decide.

    Not counted is what runs all the same: keys and values, which decoding stores for later tokens whether or not
    this graph has a cache, and a linear that shares a gated op with one of theirs. Bytes are those of a call of few
    rows, which are read once for all; where there are many, as in calibration, those of decoding one row.
    """
    site = pathway.site
    assert isinstance(site, Branch)
    rows = rows_of(site.entry, context.sizes)
    view = GraphView(gm.graph, context.fqns)
    skipped = skipped_nodes(pathway, source, context)
    total = sum((node_cost(view, node) for node in skipped), start=ZERO_COST)
    sizes = captured_sizes(gm.graph) | {str(symbol): value for symbol, value in context.sizes.items()}
    if rows is None or rows == 0 or not {str(symbol) for symbol in total.symbols} <= sizes.keys():
        return None
    contractions = [node for node in skipped if node_cost(view, node).flops != 0]
    held = sum(map(view.nbytes, _weights(contractions, context)), start=ZERO_COST.bytes)
    weights = Cost(ZERO_COST.flops, held).at(sizes)[1]
    flops, size = total.at(sizes)
    others = (
        rows if rows > FEW_ROWS else 1
    )  # the gate itself shares bytes among the few rows that it decides for
    return flops / rows, weights + max(size - weights, 0.0) / others


def _weights(skipped: list[fx.Node], context: Context) -> dict[fx.Node, None]:
    return dict.fromkeys(
        read for node in skipped for read in node.all_input_nodes if read.name in context.fqns
    )


def skipped_nodes(pathway: Pathway, source: GateSource, context: Context) -> list[fx.Node]:
    """The branch's nodes that decoding need not run where the gate is closed."""
    inside = set(pathway.nodes)
    stored: set[fx.Node] = set()
    stack = [
        end
        for other in context.pathways
        if isinstance(other.site, Attention) and other.site.node in inside
        for end in (other.site.k_base, other.site.v_base)
    ]
    while stack:
        node = stack.pop()
        if node in inside and node not in stored:
            stored.add(node)
            stack += node.all_input_nodes
    inside -= stored
    for other in context.pathways:
        if isinstance(other.site, ChannelGroup) and source.covers(f"channel:{other.place}"):
            nodes = {linear.node for linear in other.site.linears}
            inside -= set() if nodes <= inside else nodes
    return [node for node in pathway.nodes if node in inside]
