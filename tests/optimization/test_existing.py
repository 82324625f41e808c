"""`srrc.optimize` of an existing ONNX file: read, calibrated by running it, gated in place."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

import srrc
from srrc import cli
from srrc.backends.onnx.gates import THRESHOLDS, expand, gates_in
from srrc.backends.onnx.read.mirror import mirror
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.errors import ModelError
from srrc.models_zoo import families
from srrc.optimization.existing import Existing
from srrc.optimization.gate_source import gate_source
from srrc.optimization.settings import Settings
from srrc.passes.context import Context
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating.blocks import BLOCKS
from srrc.passes.insert_gates import InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pipeline import run_passes

QUICK = Settings(prompts=2, new_tokens=4, heldout_tokens=256, rounds=2, prefill=16, past=8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`written(family)` -> the path of its tiny model as ONNX, without gates."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            torch._dynamo.reset()
            made[family] = tmp_path_factory.mktemp(family) / "out"
            srrc.optimize(families.tiny(family).model, made[family], settings=QUICK)
        return made[family] / "model.onnx"

    return get


def feed_of(model: ir.Model, batch: int, length: int) -> dict[str, torch.Tensor]:
    feed: dict[str, torch.Tensor] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        if str(value.name).startswith("past"):
            feed[str(value.name)] = torch.zeros(batch, int(value.shape[1]), 0, int(value.shape[3]))
        elif value.name == "position_ids":
            feed["position_ids"] = torch.arange(length).expand(batch, length).contiguous()
        elif value.name == "token_type_ids":
            feed["token_type_ids"] = torch.zeros(batch, length, dtype=torch.int64)
        else:
            drawn = torch.randint(4, 200, (batch, length), generator=torch.Generator().manual_seed(1))
            feed[str(value.name)] = torch.ones_like(drawn) if value.name == "attention_mask" else drawn
    return feed


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("llama", {"residual": 4, "neuron": 2, "channel": 9, "vocab": 1, "attention": 2}),
        ("gpt2", {"residual": 4, "neuron": 2, "channel": 9, "vocab": 1, "attention": 2}),
        ("bert", {"residual": 4, "neuron": 2, "channel": 9, "attention": 2}),
    ],
)
def test_a_mirror_computes_the_file_and_has_its_pathways(
    family: str, found: dict[str, int], written: Any
) -> None:
    model = ir.load(written(family))
    feed = feed_of(model, 2, 9)
    read = mirror(model, feed)
    held = [
        node.name for node in read.gm.graph.nodes if node.op == "placeholder" and node.name in read.weights
    ]
    with torch.no_grad():
        outputs = torch.fx.Interpreter(read.gm).run(
            *(feed[name] for name in read.inputs), *(read.weights[name] for name in held)
        )
    for value, expected in zip(outputs, Session(written(family)).run(feed).values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    context = Context(fqns=dict(read.fqns))
    FindPathways()(Normalise()(read.gm, context), context)
    counted = {kind: sum(each.kind == kind for each in context.pathways) for kind in found}
    assert counted == found


@pytest.mark.usefixtures("paying")
@pytest.mark.parametrize("coarse", [8, None])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_it_is_gated_in_place(
    family: str, coarse: int | None, written: Any, tmp_path: Path, letters: Any
) -> None:
    settings = dataclasses.replace(QUICK, budget=0.5, coarse=coarse)
    report = srrc.optimize(written(family), tmp_path / "out", tokenizer=letters, settings=settings)
    (file,) = report.files
    assert len(file.gates) >= 4
    assert file.quality is not None
    assert 0 < file.quality.kl < 0.5
    path = tmp_path / "out" / "model.onnx"
    gated, dense = Session(path), Session(written(family))
    feed = feed_of(ir.load(written(family)), 2, 9)
    opened = gated.run({**feed, THRESHOLDS: torch.full((len(file.gates),), -1.0)})
    closed = gated.run({**feed, THRESHOLDS: torch.full((len(file.gates),), 1e30)})
    for name, value in dense.run(feed).items():
        torch.testing.assert_close(opened[name], value, rtol=1e-4, atol=1e-5)
    first = next(iter(closed))
    assert (closed[first] - opened[first]).abs().max() > 1e-6
    assert "If" in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("which", ["coarse", "out", "blocks"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_mixed_decisions_are_those_of_its_mirror(
    family: str, which: str, written: Any, tmp_path: Path, letters: Any
) -> None:
    settings = dataclasses.replace(QUICK, budget=0.5, coarse=8 if which == "coarse" else None)
    existing = Existing(written(family))
    profile = existing.calibrate(letters, settings)
    end = {"coarse": "/coarse", "blocks": BLOCKS}
    kept = {
        name: gate
        for name, gate in profile.gates.items()
        if (name.endswith(end[which]) if which in end else gate.kind == "residual")
    }
    marked = existing.mark(dataclasses.replace(profile, gates=kept), settings)
    gates = gates_in(marked.model)
    assert gates
    model = ir.Model(marked.model.graph.clone(), ir_version=marked.model.ir_version)
    expand(model, dict.fromkeys(gates, -1.0))
    gated = Session(save(model, tmp_path / "model.onnx"))

    read = mirror(ir.load(written(family)), feed_of(ir.load(written(family)), 2, 9))
    context = Context(fqns=dict(read.fqns))
    source = gate_source(dataclasses.replace(profile, gates=kept), read.fqns, read.weights)
    passes = (Normalise(), FindPathways(), InsertGates(source, settings.levels, read.fake_mode))
    gm = run_passes(passes, read.gm, context)
    feed = feed_of(ir.load(written(family)), 2, 9)
    weights = [read.weights[n.name] for n in gm.graph.find_nodes(op="placeholder") if n.name in read.weights]
    opened = None
    for fraction in (0.0, 0.3, 0.7, 1.0):
        limits = {gate: profile.gates[gate].threshold(fraction) for gate in gates}
        for gate in context.gates:
            gate.record.copy_(torch.tensor([limits[gate.id], 0.0]))
        with torch.no_grad():
            expected = torch.fx.Interpreter(gm).run(*(feed[name] for name in read.inputs), *weights)[0]
        thresholds = torch.tensor([limits[gate] for gate in gates])
        actual = next(iter(gated.run({**feed, THRESHOLDS: thresholds}).values()))
        off = (actual - expected).abs() / expected.abs().max()
        # Where a number lies between two of 8 bits, it may be rounded either way.
        assert off.max() <= (2e-2 if which == "coarse" else 1e-4), fraction
        opened = actual if opened is None else opened
    assert (actual - opened).abs().max() > 1e-6


def test_a_file_that_has_gates_already_is_refused(
    written: Any, tmp_path: Path, paying: None, letters: Any
) -> None:
    settings = dataclasses.replace(QUICK, budget=0.5)
    srrc.optimize(written("llama"), tmp_path / "once", tokenizer=letters, settings=settings)
    with pytest.raises(ModelError, match="has gates already"):
        srrc.optimize(tmp_path / "once" / "model.onnx", tmp_path / "twice", settings=settings)


def test_a_file_that_is_no_onnx_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no model" * 40)
    for name, complaint in (("broken.onnx", "is no ONNX model"), ("missing.onnx", "there is no file")):
        result = CliRunner().invoke(cli.app, ["optimize", str(tmp_path / name), "-o", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        assert complaint in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_control_flow_is_not_looked_into(tmp_path: Path) -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")
    )
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
    ]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    )
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    with pytest.raises(ModelError, match="control flow already"):
        mirror(model, {"c": torch.tensor(True), "x": torch.ones(3)})
