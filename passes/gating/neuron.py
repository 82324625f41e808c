"""Gates on an MLP: its input channels, its neurons before `up` is computed, and its neurons once they are known."""

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.ops.emphasis import FLOPS as EMPHASIS
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating import blocks
from srrc.passes.gating.source import GateSource, GateTensors, emit_gates
from srrc.passes.linear_arguments import mlp_arguments, replace
from srrc.pathways.base import Pathway
from srrc.pathways.neuron import Mlp
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import Gate


def gate_ids(pathway: Pathway) -> list[str]:
    """The rows of `srr::neuron_mlp`'s gates (a plain MLP has no neuron gate before `up`), and the gate on blocks."""
    site = pathway.site
    assert isinstance(site, Mlp)
    parts = ("input", "neuron", "down") if site.gate is not None else ("input", "down")
    return [*(f"neuron:{pathway.place}/{part}" for part in parts), blocks.gate_id_of(pathway)]


def skips_up_rows(pathway: Pathway, source: GateSource) -> bool:
    """Whether `up` is kept by rows, for its neuron gate, rather than by input channels: it cannot be both."""
    site = pathway.site
    return isinstance(site, Mlp) and site.gate is not None and source.covers(f"neuron:{pathway.place}/neuron")


def insert(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context, fake_mode: FakeTensorMode
) -> list[Gate]:
    """Replace the MLP by one `srr::neuron_mlp`; or mask its blocks, where the backend has a gate on those."""
    site = pathway.site
    assert isinstance(site, Mlp)
    if blocks.fits(pathway, source):
        return blocks.insert(gm, pathway, source, context, fake_mode)
    *own, _ = gate_ids(pathway)
    if not any(map(source.covers, own)):
        context.refusals.append(Refusal(pathway.place, "neuron", Reason.NOT_GATED_YET))
        return []
    by_rows = skips_up_rows(pathway, source)
    first = tuple(linear for linear in (site.gate, None if by_rows else site.up) if linear is not None)
    norms = {
        "input": source.column_norm(first),
        "neuron": source.column_norm((site.down,)),
        "down": source.column_norm((site.down,)),
    }
    given = {part: source.vectors.get(f"neuron:{pathway.place}/{part}/norm") for part in norms}
    norms.update({part: norm for part, norm in given.items() if norm is not None})
    with gm.graph.inserting_before(site.down.node):
        held = emit_gates(gm, f"neuron:{pathway.place}", site.x, 3, context, fake_mode)
        nodes = [emit_tensor(gm, f"{held.name}_{part}", norm, fake_mode) for part, norm in norms.items()]
        probes = _emphasis(pathway, source)
        emphasis = None if probes is None else emit_tensor(gm, f"{held.name}_emphasis", probes, fake_mode)
        args = (
            *mlp_arguments(gm.graph, site, fake_mode),
            *nodes,
            held.record,
            held.counter,
            emphasis,
            by_rows,
        )
        result = emit(gm.graph, torch.ops.srr.neuron_mlp.default, args, fake_mode)
    replace(gm.graph, site.nodes, site.down.node, result)
    return _gates(pathway, site, source, held, deciding=0.0 if probes is None else EMPHASIS)


def _emphasis(pathway: Pathway, source: GateSource) -> torch.Tensor | None:
    """The probes of the op's three gates, [3, K + 1]; None where the profile has none for any of them."""
    given = [
        source.vectors.get(f"neuron:{pathway.place}/{part}/emphasis") for part in ("input", "neuron", "down")
    ]
    some = next((probe for probe in given if probe is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if probe is None else probe for probe in given])


def _gates(pathway: Pathway, site: Mlp, source: GateSource, held: GateTensors, deciding: float) -> list[Gate]:
    """As profiles know them. deciding: FLOPs of emphasis, for each value of the MLP's input, at each gate."""
    by_rows = skips_up_rows(pathway, source)
    neurons, inputs, outputs = site.up.out_features, site.up.in_features, site.down.out_features
    by_channel = (1 if site.gate is not None else 0) + (0 if by_rows else 1)
    units = {"input": by_channel * neurons, "neuron": inputs if by_rows else 0, "down": outputs}
    size = value_of(site.up.weight).element_size()
    rows = {"input": 0, "neuron": 1, "down": 2}
    overhead = {"input": 1.0 + deciding, "neuron": 1.0 + deciding * inputs / neurons}
    overhead["down"] = overhead["neuron"]
    return [
        held.gate(gate_id, rows[part], 2.0 * units[part], units[part] * size, overhead[part])
        for gate_id in gate_ids(pathway)[:-1]
        for part in [gate_id.rsplit("/", 1)[1]]
    ]
