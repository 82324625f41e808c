"""A tiny model of a family as ONNX, with a gate wherever one can stand, and the same graph in torch."""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx

from srrc.backends.onnx.gates import THRESHOLDS, expand, gates_in
from srrc.backends.onnx.interfaces import Interface, interfaces
from srrc.backends.onnx.lower import Marked, Prepared, lower, prepare
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.backends.onnx.trace import Traced
from srrc.models_zoo import families
from srrc.options import LEVELS
from srrc.passes.context import Context
from srrc.passes.copy_graph import copy_graph
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating.blocks import BLOCKS, gate_id_of
from srrc.passes.gating.source import GateSource
from srrc.passes.normalise import Normalise
from srrc.pathways.neuron import Mlp
from srrc.pathways.residual import Branch

VISION = ("vit", "clip", "resnet")


class Exported:
    """One file of a family's tiny model, gated.

    which: "out" gates leave branches out, "coarse" gates let weights of 8 bits stand in, and the head's too, "blocks"
           gates leave blocks of neurons out
    """

    def __init__(self, interface: Interface, which: str, folder: Path) -> None:
        self._folder = folder
        self.prepared: Prepared = prepare(interface, functools.partial(_source, which=which), LEVELS)
        self.interface = self.prepared.interface
        self.marked: Marked = lower(self.prepared)
        self.gates = gates_in(self.marked.model)
        self.path = self.write("gated", dict.fromkeys(self.gates, -1.0))
        self.dense = self.write("dense", {})

    def write(self, name: str, thresholds: Mapping[str, float]) -> Path:
        model = ir.Model(self.marked.model.graph.clone(), ir_version=self.marked.model.ir_version)
        expand(model, thresholds)
        return save(model, self._folder / f"{self.interface.name}-{name}.onnx")

    @functools.cached_property
    def session(self) -> Session:
        return Session(self.path)

    def run(self, inputs: Mapping[str, Tensor], thresholds: Tensor) -> dict[str, Tensor]:
        return self.session.run({**inputs, THRESHOLDS: thresholds} if self.gates else inputs)

    def reference(self, inputs: Mapping[str, Tensor], thresholds: Tensor) -> dict[str, Tensor]:
        """The same decisions in torch. Each token decides for itself there only in more than eight rows."""
        limits = dict(zip(self.gates, thresholds.tolist(), strict=True))
        for gate in self.prepared.context.gates:
            gate.record.copy_(torch.tensor([limits.get(gate.id, -1.0), 0.0]))
        with torch.no_grad():
            found = self.prepared.module()(*inputs.values())
        return dict(zip(self.interface.outputs, found, strict=True))


def _source(traced: Traced, which: str) -> GateSource:
    """Probes at random, so that about half of the tokens are kept at a threshold of 1."""
    context = Context(fqns=dict(traced.fqns))
    covers = {
        "out": lambda gate: gate.startswith(("residual", "vocab")) and not gate.endswith("/coarse"),
        "coarse": lambda gate: gate.startswith(("residual", "vocab")) and gate.endswith("/coarse"),
        "blocks": lambda gate: gate.endswith(BLOCKS),
    }
    FindPathways()(Normalise()(fx.GraphModule(traced.gm, copy_graph(traced.gm.graph)), context), context)
    generator = torch.Generator().manual_seed(0)
    vectors: dict[str, Tensor] = {}
    for pathway in context.pathways:
        if isinstance(pathway.site, Branch):
            width = pathway.site.entry.meta["example_value"].shape[-1]
            if isinstance(width, int):
                probe = torch.cat((0.3 * torch.randn(width, generator=generator), torch.zeros(1)))
                vectors |= {
                    f"residual:{pathway.place}/probe": probe,
                    f"residual:{pathway.place}/bits": torch.tensor(8),
                }
        if isinstance(pathway.site, Mlp):
            gate, neurons = gate_id_of(pathway), pathway.site.down.in_features
            directions = 0.3 * torch.randn(3, pathway.site.up.in_features, generator=generator)
            vectors[f"{gate}/probes"] = torch.cat((directions, torch.zeros(3, 1)), 1)
            vectors[f"{gate}/of"] = torch.arange(neurons)[torch.randperm(neurons, generator=generator)] % 3
    return GateSource(
        covers=covers[which],
        weights=traced.weights,
        vectors=vectors,
        many_rows=True,
        coarse=True,
        blocks=True,
    )


Export = Callable[[str, str], list[Exported]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(family, which)` -> its files, made once."""
    made: dict[tuple[str, str], list[Exported]] = {}

    def get(family: str, which: str) -> list[Exported]:
        if (family, which) not in made:
            torch._dynamo.reset()
            tiny = families.tiny(family)
            given = tiny.inputs(2, 3) if family in VISION else None
            folder = tmp_path_factory.mktemp(f"{family}-{which}")
            found = interfaces(copy.deepcopy(tiny.model), given)
            made[family, which] = [Exported(each, which, folder) for each in found]
        return made[family, which]

    return get
