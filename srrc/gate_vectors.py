"""What gates need beside weights, from real inputs: a basis for the vocabulary head, norms for neurons, probes for
branches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from srrc.gated_model import GatedGraph
from srrc.passes.gating.blocks import gate_id_of
from srrc.passes.gating.residual import unfit
from srrc.passes.gating.source import GateSource
from srrc.pathways.base import Linear, Pathway
from srrc.pathways.neuron import Mlp
from srrc.pathways.residual import Branch
from srrc.pathways.vocab import Head
from srrc.relevance.basis import Moments, head_basis
from srrc.relevance.blocks import BlockFit, NeuronTotal
from srrc.relevance.probe import ProbeFit
from srrc.relevance.replay import Replay
from srrc.relevance.statistics import Look, look

EXACT_SHARE = 24
"""One token in so many gets exact logits. On a vocabulary of 49,152, 2,048 of them leave a tenth of the drift
that 512 leave, for a twenty-fourth of the head's cost."""


def gate_vectors(
    gated: GatedGraph,
    calls: Sequence[Any],
    *,
    neurons: bool,
    layers: bool,
    coarse: int | None = None,
    blocks: int | None = None,
    skip_first: int,
) -> dict[str, Tensor]:
    """Vectors by "gate id/name", measured over `calls` (arguments of the graph).

    For a head: rotation, inverse [H, H], mean [H] and exact []. With `neurons`, for an MLP's neuron gate: norm [I].
    With `layers` or `coarse`, for a branch: probe [H + 1], and with `coarse` bits []. With `blocks`, for the gate on so
    many blocks of an MLP's neurons: of int64 [I], probes [blocks, H + 1].
    """
    looks: dict[fx.Node, list[Look]] = {}
    finish: list[Callable[[], Mapping[str, Tensor]]] = []
    for pathway in gated.pathways:
        site = pathway.site
        if isinstance(site, Head):
            moments = Moments(site.linear.in_features)
            looks.setdefault(site.linear.x, []).append(_tail(moments.add, skip_first))
            finish.append(functools.partial(_head, gated, pathway, moments, coarse))
        elif neurons and isinstance(site, Mlp) and site.gate is not None:
            size = _Size(site.up)
            looks.setdefault(site.up.node, []).append(_tail(size.add, skip_first))
            finish.append(functools.partial(_neuron, gated, pathway, size))
        elif (layers or coarse is not None) and isinstance(site, Branch) and unfit(site) is None:
            fit = ProbeFit(int(site.entry.meta["example_value"].shape[-1]))
            for part, node in (("entry", site.entry), ("exit", site.exit), ("stream", site.stream)):
                see = functools.partial(fit.see, part)
                looks.setdefault(node, []).append(_tail(see, skip_first))
            finish.append(functools.partial(_branch, pathway, fit, coarse))
    if looks:
        look(Replay(gated.base, ()), calls, looks)
    found = {name: vector for each in finish for name, vector in each().items()}
    return found if blocks is None else found | _blocks(gated, calls, blocks, skip_first)


class _Size:
    """Root mean square of a linear's outputs: float32 [out_features]."""

    def __init__(self, linear: Linear) -> None:
        self._rows = slice(*linear.rows) if linear.rows is not None else slice(None)
        self._sum, self._count = torch.zeros(linear.out_features, dtype=torch.float32), 0

    def add(self, value: Tensor) -> None:
        flat = value[..., self._rows].reshape(-1, len(self._sum))
        self._sum += flat.float().square().sum(0)
        self._count += len(flat)

    def value(self) -> Tensor:
        return (self._sum / max(self._count, 1)).sqrt()


def _tail(add: Look, skip: int) -> Look:
    """`add` of all but the first positions."""
    return lambda value: add(value[..., skip:, :] if value.dim() >= 3 and value.shape[-2] > skip else value)


def _head(gated: GatedGraph, pathway: Pathway, moments: Moments, coarse: int | None) -> dict[str, Tensor]:
    site = pathway.site
    assert isinstance(site, Head)
    weight = GateSource(lambda gate: True, gated.weights).matrix(site.linear)
    basis = head_basis(moments, weight)
    exact = torch.tensor(max(1, site.linear.out_features // EXACT_SHARE))
    found = {"rotation": basis.rotation, "inverse": basis.inverse, "mean": basis.mean, "exact": exact}
    if coarse is not None:
        found["bits"] = torch.tensor(8)  # 4 measured hardly faster: 1.07 ms for 1.22, of 5.6 in full
    return {f"vocab:{pathway.place}/{name}": vector for name, vector in found.items()}


def _neuron(gated: GatedGraph, pathway: Pathway, size: _Size) -> dict[str, Tensor]:
    site = pathway.site
    assert isinstance(site, Mlp)
    norm = GateSource(lambda gate: True, gated.weights).column_norm((site.down,))
    return {f"neuron:{pathway.place}/neuron/norm": size.value() * norm}


def _blocks(gated: GatedGraph, calls: Sequence[Any], blocks: int, skip_first: int) -> dict[str, Tensor]:
    """Two looks: how MLPs are split depends on what their neurons do, and probes on how they are split."""
    source = GateSource(lambda gate: True, gated.weights)
    mlps = [
        (gate_id_of(pathway), pathway.site)
        for pathway in gated.pathways
        if isinstance(pathway.site, Mlp) and pathway.site.down.in_features >= blocks
    ]
    if not mlps:
        return {}
    means = {gate: NeuronTotal(source.column_norm((site.down,))) for gate, site in mlps}
    replay = Replay(gated.base, ())
    look(replay, calls, {site.down.x: [_tail(means[gate].add, skip_first)] for gate, site in mlps})
    fits = {
        gate: BlockFit(site.up.in_features, means[gate].split(blocks), source.matrix(site.down))
        for gate, site in mlps
    }
    looks: dict[fx.Node, list[Look]] = {}
    for gate, site in mlps:
        for part, node in (("x", site.x), ("hidden", site.down.x)):
            looks.setdefault(node, []).append(_tail(functools.partial(fits[gate].see, part), skip_first))
    look(replay, calls, looks)
    found: dict[str, Tensor] = {}
    for gate, fit in fits.items():
        found |= {f"{gate}/of": fit.of, f"{gate}/probes": fit.probes()}
    return found


def _branch(pathway: Pathway, fit: ProbeFit, coarse: int | None) -> dict[str, Tensor]:
    found = {f"residual:{pathway.place}/probe": fit.probe()}
    return found if coarse is None else found | {f"residual:{pathway.place}/bits": torch.tensor(coarse)}
