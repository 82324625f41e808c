"""Layer gates in a graph: masks that are right for any number of rows, regions that are left out for a few of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from srrc.ops.gated_region import gated_region
from srrc.options import LEVELS
from srrc.passes.cuts import region_cuts
from srrc.passes.enclose import Enclose
from srrc.passes.insert_gates import InsertGates
from srrc.passes.partition import partition
from srrc.pathways.residual import Branch
from srrc.reasons import Reason
from srrc.runtime.driver import Step, build_driver

WIDTH = 16
LAYER = frozenset({"layer"})
BRANCHES = ("o", "norm.weight", "one")


class Mixer(nn.Module):
    """A branch that stores keys in `cache`, as attention does, and one that does not."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def mix(self, x: Tensor, cache: Tensor, at: int) -> Tensor:
        normed = self.norm(x)
        cache[:, at : at + 1].copy_(self.key(normed))
        scores = self.query(normed) @ cache.transpose(1, 2)
        return self.out(scores.softmax(-1) @ cache)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        x = x + self.mix(x, cache, 0)
        return x + self.down(F.relu(self.up(x)))


class Layers(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mixer() for _ in range(number))

    def forward(self, x: Tensor, caches: list[Tensor]) -> Tensor:
        x = x + 1
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        return x * 2


class Parallel(nn.Module):
    """Both branches read the stream, and are added to each other before they join it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return (torch.tanh(self.one(x)) + torch.relu(self.two(self.norm(x))) + x) * 3


Insert = Callable[..., Any]


@pytest.fixture
def gated(capture, source) -> Insert:
    """`gated(model, *inputs, levels=..., covers=...)` -> (captured graph, gm with layer gates as masks)."""

    def make(model: nn.Module, *inputs: Any, levels: frozenset[str] = LAYER, **options: Any) -> Any:
        (graph,) = capture(model, *inputs)
        gm = graph.find()
        mode = next(node.meta["example_value"] for node in gm.graph.nodes).fake_mode
        generator = torch.Generator().manual_seed(0)
        vectors = {
            f"residual:{p.place}/probe": torch.randn(
                p.site.entry.meta["example_value"].shape[-1] + 1, generator=generator
            )
            for p in graph.of("residual")
        }
        InsertGates(source(graph, vectors=vectors, **options), levels, mode)(gm, graph.context)
        gm.graph.lint()
        gm.recompile()
        return graph, gm

    return make


def enclosed(graph: Any, gm: fx.GraphModule) -> fx.GraphModule:
    mode = next(node.meta["example_value"] for node in gm.graph.nodes).fake_mode
    gm = Enclose(mode)(gm, graph.context)
    gm.graph.lint()
    gm.recompile()
    return gm


def regions_of(gm: fx.GraphModule) -> list[fx.Node]:
    return gm.graph.find_nodes(op="call_function", target=gated_region)


def close(graph: Any, *places: str) -> None:
    """Close the gates on the branches whose place ends so."""
    for gate in graph.context.gates:
        gate.record[0] = 1e30 if gate.id.endswith(places) else -1.0


def run(graph: Any, gm: fx.GraphModule) -> tuple[Tensor, list[Any]]:
    """(what the graph gives, its arguments after the call)."""
    arguments = graph.arguments()
    with torch.no_grad():
        return gm(*arguments)[0], arguments


def drive(graph: Any, gm: fx.GraphModule) -> tuple[Tensor, list[bool]]:
    """(what the driver gives with its regions interpreted, which of the conditional ones ran)."""
    ran: list[bool] = []
    regions = partition(gm, region_cuts(gm.graph, graph.context.pathways))

    def spy(region: Any) -> Callable[..., Any]:
        module = region.module(gm)
        if region.condition is None:
            return module
        place = len(ran)
        ran.append(False)

        def call(*arguments: Any) -> Any:
            ran[place] = True
            return module(*arguments)

        return call

    driver = build_driver(gm, [Step(spy(r), r.inputs, r.outputs, r.condition) for r in regions])
    with torch.no_grad():
        return driver.run(*graph.arguments())[0], ran


def layers(rows: int = 1, number: int = 2) -> tuple[nn.Module, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    return Layers(number), torch.randn(rows, 1, WIDTH), [torch.randn(rows, 3, WIDTH) for _ in range(number)]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_open_gates_change_nothing(rows: int, gated: Insert) -> None:
    graph, gm = gated(*layers(rows))
    expected, _ = run(graph, graph.copy())
    assert [gate.id for gate in graph.context.gates] == [
        f"residual:layers.{layer}.{name}" for layer in range(2) for name in ("norm.weight", "up.weight")
    ]
    assert torch.equal(run(graph, gm)[0], expected)
    gm = enclosed(graph, gm)
    assert len(regions_of(gm)) == 4
    assert torch.equal(run(graph, gm)[0], expected)
    found, ran = drive(graph, gm)
    assert torch.equal(found, expected)
    assert ran == [True] * 4
    for gate in graph.context.gates:
        assert gate.counters.tolist() == [3 * rows, 3 * rows, 0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("left_out", [("0.norm.weight",), ("1.up.weight",), ("0.up.weight", "1.norm.weight")])
def test_a_closed_gate_leaves_its_branch_out_and_nothing_else(
    left_out: tuple[str, ...], rows: int, gated: Insert
) -> None:
    model, x, caches = layers(rows)
    graph, gm = gated(model, x, caches)
    copy = fx.Graph()
    copy.output(copy.graph_copy(gm.graph, {}))
    masked = fx.GraphModule(gm, copy)
    gm = enclosed(graph, gm)
    close(graph, *left_out)
    stream, stored = x + 1, [cache.clone() for cache in caches]
    with torch.no_grad():
        for index, (layer, cache) in enumerate(zip(model.layers, stored, strict=True)):
            mixed = layer.mix(stream, cache, 0)  # it stores its key, whether or not the result is used
            stream = stream if f"{index}.norm.weight" in left_out else stream + mixed
            wide = layer.down(F.relu(layer.up(stream)))
            stream = stream if f"{index}.up.weight" in left_out else stream + wide
    for each in (masked, gm):
        found, arguments = run(graph, each)
        torch.testing.assert_close(found, 2 * stream)
        after = [a for a in arguments if isinstance(a, Tensor) and a.shape == caches[0].shape]
        for cache, expected in zip(after, stored, strict=True):
            torch.testing.assert_close(cache, expected)
    found, ran = drive(graph, gm)
    torch.testing.assert_close(found, 2 * stream)
    places = ["0.norm.weight", "0.up.weight", "1.norm.weight", "1.up.weight"]
    assert ran == [place not in left_out for place in places]


def test_equal_layers_have_equal_keys_and_a_branch_left_out_gives_the_stream_itself(gated: Insert) -> None:
    graph, gm = gated(*layers(number=3))
    gm = enclosed(graph, gm)
    regions = partition(gm, region_cuts(gm.graph, graph.context.pathways))
    keys = [region.key for region in regions if region.condition is not None]
    assert len(keys) == 6
    assert len(set(keys)) == 2
    assert keys[:2] == keys[2:4] == keys[4:]
    for region in regions:
        assert region.condition is None or len(region.nodes) == 1
    first = next(region for region in regions if region.condition is not None)
    assert first.condition.bypass.meta["example_value"].shape == (1, 1, WIDTH)
    assert "add" in str(first.condition.bypass.target)


def test_one_row_that_is_kept_keeps_the_others(gated: Insert) -> None:
    graph, gm = gated(*layers(2, number=1))
    expected, _ = run(graph, graph.copy())
    gm = enclosed(graph, gm)
    gate = graph.context.gates[1]
    scores = _scores(graph, gm, gate)
    assert len(scores) == 2
    gate.record[0] = float(scores.mean())  # between the two
    found, ran = drive(graph, gm)
    assert torch.equal(found, expected)
    assert ran == [True, True]
    gate.record[0] = float(scores.max())
    assert drive(graph, gm)[1] == [True, False]


def _scores(graph: Any, gm: fx.GraphModule, gate: Any) -> Tensor:
    """What the gate scores on the graph's own arguments."""
    from srrc.relevance import scores

    found: list[Tensor] = []

    class Spy(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.target is torch.ops.srr.layer_gate.default:
                args, _ = self.fetch_args_kwargs_from_env(n)
                if args[2].data_ptr() == gate.record.data_ptr():
                    found.append(scores.scores(n, {"x": args[0], "probe": args[1]})[0].score.flatten())
            return super().run_node(n)

    with torch.no_grad():
        Spy(gm).run(*graph.arguments())
    return found[0]


def test_many_rows_stay_masked_row_by_row(gated: Insert) -> None:
    model, x, caches = layers(12, number=1)
    graph, _ = gated(model, x, caches)
    assert not graph.context.gates
    assert {r.reason for r in graph.context.refusals if r.kind == "residual"} == {Reason.MANY_ROWS}
    graph, gm = gated(model, x, caches, many_rows=True)
    gate = graph.context.gates[1]
    scores = _scores(graph, gm, gate)
    gate.record[0] = float(scores.median())
    assert not regions_of(enclosed(graph, gm))
    found, _ = run(graph, gm)
    with torch.no_grad():
        stream = x + 1
        stream = stream + model.layers[0].mix(stream, caches[0].clone(), 0)
        wide = model.layers[0].down(F.relu(model.layers[0].up(stream)))
        keep = (scores > scores.median())[:, None, None]
        assert 0 < keep.sum() < len(keep)
        torch.testing.assert_close(found, 2 * (stream + torch.where(keep, wide, 0)))


@pytest.mark.parametrize("left_out", [(), ("one.weight",), ("norm.weight",), ("one.weight", "norm.weight")])
def test_branches_that_are_added_to_each_other_first(left_out: tuple[str, ...], gated: Insert) -> None:
    torch.manual_seed(0)
    model, x = Parallel(), torch.randn(1, WIDTH)
    graph, gm = gated(model, x)
    gm = enclosed(graph, gm)
    assert len(regions_of(gm)) == 2
    close(graph, *left_out)
    with torch.no_grad():
        one = torch.tanh(model.one(2 * x)) if "one.weight" not in left_out else 0.0
        two = torch.relu(model.two(model.norm(2 * x))) if "norm.weight" not in left_out else 0.0
        expected = 3 * (one + two + 2 * x)
    torch.testing.assert_close(run(graph, gm)[0], expected)
    found, ran = drive(graph, gm)
    torch.testing.assert_close(found, expected)
    assert ran.count(False) == len(left_out)


def test_gates_inside_a_branch_work_inside_its_region(gated: Insert) -> None:
    graph, gm = gated(*layers(), levels=LEVELS - {"vocab"})
    expected, _ = run(graph, graph.copy())
    gm = enclosed(graph, gm)
    assert len(regions_of(gm)) == 4
    inner = {str(node.target) for region in regions_of(gm) for node in _inside(gm, region)}
    assert "srr.neuron_mlp.default" in inner
    found, ran = drive(graph, gm)
    torch.testing.assert_close(found, expected)
    down = next(gate for gate in graph.context.gates if gate.id.endswith("layers.0.up.weight/down"))
    offered = int(down.counters[0])
    assert offered == 2 * WIDTH
    down.record[0] = 0.5
    assert not torch.allclose(drive(graph, gm)[0], expected)
    assert int(down.counters[0]) == 2 * offered
    close(graph, "residual:layers.0.up.weight")
    found, ran = drive(graph, gm)
    assert ran == [True, False, True, True]
    assert int(down.counters[0]) == 2 * offered, "a gate in a region that is left out decides nothing"


def _inside(gm: fx.GraphModule, region: fx.Node) -> list[fx.Node]:
    return list(getattr(gm, region.args[1].target).graph.nodes)


class Overwritten(nn.Module):
    """What the branch has read is written to before the branch ends; its second term is not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        x = x * 2
        hidden = self.one(x) * state
        state.add_(1)
        return x + self.two(torch.tanh(hidden))


def test_a_branch_is_not_moved_past_a_write_to_what_it_reads(gated: Insert) -> None:
    """Finding the pathway refuses it already; so a write is put in that comes between later on."""
    model = Parallel()
    graph, gm = gated(model, torch.randn(1, WIDTH))
    (one,) = [n for n in gm.graph.nodes if n.target is torch.tanh]
    x = one.args[0].args[0]
    with gm.graph.inserting_after(one):
        write = gm.graph.call_method("mul_", (x, 1.0))
        write.meta = dict(x.meta)
    gm.graph.lint()
    expected, _ = run(graph, graph.copy())
    gm = enclosed(graph, gm)
    refused = {(r.place, r.reason) for r in graph.context.refusals if r.kind == "region"}
    assert ("one.weight", Reason.WRITTEN_BETWEEN) in refused
    for gate in graph.context.gates:
        masked = gate.id.split(":")[1] in {place for place, _ in refused}
        assert (gate.flops == 0.0) == (gate.bytes == 0.0) == masked, (
            "what runs all the same is not counted as saved"
        )
    torch.testing.assert_close(run(graph, gm)[0], expected)


def test_what_pathway_finding_refuses_gets_no_gate(gated: Insert) -> None:
    graph, _ = gated(Overwritten(), torch.randn(1, WIDTH), torch.randn(1, WIDTH))
    assert not graph.context.gates
    assert graph.refused("residual") == [("one.weight", "WRITTEN_BETWEEN")]


def test_a_branch_without_a_probe_gets_no_gate_and_says_so(capture, source) -> None:
    (graph,) = capture(Parallel(), torch.randn(1, WIDTH))
    gm = graph.find()
    mode = next(node.meta["example_value"] for node in gm.graph.nodes).fake_mode
    InsertGates(source(graph), LAYER, mode)(gm, graph.context)
    assert not graph.context.gates
    assert {r.reason for r in graph.context.refusals if r.kind == "residual"} == {Reason.NO_PROFILE}


def test_the_cost_of_a_gate_is_what_its_branch_saves_for_a_row(gated: Insert) -> None:
    for rows in (1, 4):
        graph, _ = gated(*layers(rows, number=1))
        mixing, mlp = graph.context.gates
        assert mlp.flops == 2 * 2 * WIDTH * 2 * WIDTH
        # Rows share the weights, each has activations of its own; all of it is saved once a call.
        assert mlp.bytes == 4 * (4 * WIDTH * WIDTH + 3 * WIDTH + 6 * WIDTH * rows)
        mlp.counters.copy_(torch.tensor([rows, 0, 0]))
        assert mlp.saved == (rows * (mlp.flops - mlp.overhead), mlp.bytes)
        # The key is stored all the same; query, output and two products with the three entries are not.
        assert mixing.flops == 2 * (2 * WIDTH * WIDTH + 2 * 3 * WIDTH)
        assert all(isinstance(p.site, Branch) for p in graph.of("residual"))
