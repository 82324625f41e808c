"""Time of an ONNX decoder against the share of its branches that is skipped: the plot in docs/onnx.md.

    python docs/figures/skipping.py smollm2-135m smollm2.srr docs/skipping.png

The profile's probes decide for each branch which tokens it leaves out. What they do leave out is counted, by FLOPs:
where branches are missing the stream is another, and so are the scores. Beside it stands the file whose branches are
taken out of the graph: what is left of the time then is what no gate can save.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import onnx_ir as ir
import torch

from srrc import models_zoo
from srrc.backends.onnx.build import replace_node
from srrc.backends.onnx.gates import THRESHOLDS, expand, gates_in
from srrc.backends.onnx.gates.branch import addition
from srrc.backends.onnx.interfaces import interfaces
from srrc.backends.onnx.lower import Marked, lower, prepare
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.backends.onnx.trace import Traced
from srrc.optimization.plan import CLOSED
from srrc.optimization.reader_of import reader_of
from srrc.optimization.settings import Settings
from srrc.optimization.timing import Feeds, over_loads
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
ROUNDS = 10


def main(name: str, profile_path: str, image: str) -> None:
    """Measure and plot."""
    model, tokenizer = models_zoo.load(name)
    model.eval()
    profile = Profile.load(Path(profile_path))
    probes = {key.removesuffix("/probe") for key in profile.vectors if key.endswith("/probe")}

    def source(traced: Traced) -> GateSource:
        return GateSource(probes.__contains__, traced.weights, profile.vectors, many_rows=True)

    (interface,) = interfaces(model, None)
    marked = lower(prepare(interface, source, frozenset({"layer"})))
    gates = gates_in(marked.model)
    flops = [marked.gates[gate].flops for gate in gates]
    reader = reader_of(model, tokenizer, marked.interface, Settings())
    with TemporaryDirectory() as room:
        dense = Session(_write(marked, [], Path(room) / "dense.onnx"))
        gated = Session(_write(marked, gates, Path(room) / "gated.onnx"))
        counting = Session(_count(Path(room) / "gated.onnx", Path(room) / "counting.onnx"))
        bare = Session(_write(marked, None, Path(room) / "bare.onnx"))
        found: dict[str, dict[str, Any]] = {}
        for calls in reader.calls():
            points = []
            for share in SHARES:
                extra = _limits(profile, gates, share)
                ratio = over_loads(dense, gated, extra, calls.feeds, ROUNDS)["ratio"]
                points.append((_skipped(counting, calls.feeds, extra, flops), ratio))
            bare_ratio = over_loads(dense, bare, {}, calls.feeds, ROUNDS)["ratio"]
            found[calls.phase] = {"points": points, "bare": bare_ratio}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    _plot(found, image)


def _write(marked: Marked, gates: list[str] | None, path: Path) -> Path:
    """The file with these gates; None takes the branches themselves out of it."""
    model = ir.Model(marked.model.graph.clone(), ir_version=marked.model.ir_version)
    if gates is None:
        for node in [node for node in model.graph if node.op_type == "Branch"]:
            add = addition(node)
            assert add is not None
            replace_node(add, next(each for each in add.inputs if each is not node.outputs[0]))
            model.graph.remove(node, safe=True)
    expand(model, dict.fromkeys(gates or (), -1.0))
    return save(model, path)


def _count(gated: Path, path: Path) -> Path:
    """The file with every gate's decisions handed out, too."""
    model = ir.load(gated)
    for node in list(model.graph):
        producer = node.inputs[0].producer() if node.op_type == "LessOrEqual" and node.inputs[0] else None
        if producer is not None and producer.op_type == "MatMul":
            node.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
            model.graph.outputs.append(node.outputs[0])
    return save(model, path)


def _skipped(
    counting: Session, feeds: Feeds, extra: Mapping[str, torch.Tensor], flops: Sequence[float]
) -> float:
    """Share of the branches' FLOPs that is skipped."""
    found = []
    for feed in feeds:
        low = [each for each in counting.run({**feed, **extra}).values() if each.dtype is torch.bool]
        pairs = zip(low, flops, strict=True)
        found.append(sum(float(each.double().mean()) * cost for each, cost in pairs) / sum(flops))
    return sum(found) / len(found)


def _limits(profile: Profile, gates: list[str], share: float) -> dict[str, torch.Tensor]:
    """Thresholds at which each branch is skipped for this share of the tokens."""
    known = [profile.gates.get(gate) or profile.gates[f"{gate}/coarse"] for gate in gates]
    at = [CLOSED if share == 1 else gate.threshold(share) for gate in known]
    return {THRESHOLDS: torch.tensor(at, dtype=torch.float32)}


def _plot(found: dict[str, dict[str, Any]], image: str) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    for phase, times in found.items():
        bare = times["bare"]
        left = [(ratio - bare) / (1.0 - bare) for _, ratio in times["points"]]
        axes.plot([share for share, _ in times["points"]], left, marker="o", label=phase)
    axes.plot((0, 1), (1, 0), color="gray", linestyle=":", label="as much as is skipped")
    axes.set(xlabel="share of the branches' FLOPs that is skipped", ylim=(-0.05, 1.2))
    axes.set_ylabel("time of the branches, of dense")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
