"""Insert gates: open gates change nothing, closed ones drop what they say, and what has no gate says why."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.options import LEVELS
from srrc.passes.insert_gates import InsertGates
from srrc.reasons import Reason

WIDTH = 16
CHANNELS_AND_NEURONS = LEVELS - {"vocab"}


class Model(nn.Module):
    """Attention-like projections that share an input, a gated MLP, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8, bias=False)
        self.o = nn.Linear(8, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.one, self.two = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(torch.tanh(self.q(x)) * self.k(x))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return x + self.two(torch.relu(self.one(x)))


@pytest.fixture
def gated(capture, source) -> Any:
    """`gated(rows, covers, levels, **source options)` -> (captured graph, its gated copy)."""

    def make(rows: int = 1, levels: frozenset[str] = CHANNELS_AND_NEURONS, **options: Any) -> Any:
        torch.manual_seed(0)
        (graph,) = capture(Model(), torch.randn(rows, WIDTH))
        gm = graph.find()
        value = next(node.meta["example_value"] for node in gm.graph.nodes)
        InsertGates(source(graph, **options), levels, value.fake_mode)(gm, graph.context)
        gm.graph.lint()
        gm.recompile()
        return graph, gm

    return make


def _run(graph: Any, gm: Any) -> Tensor:
    with torch.no_grad():
        return gm(*graph.arguments())[0]


def _ids(graph: Any) -> list[str]:
    return [gate.id for gate in graph.context.gates]


def _reasons(graph: Any, kind: str) -> set[Reason]:
    """Why pathways of a kind have no gate; the product of `q` and `k` is no MLP, which is another matter."""
    reasons = {r.reason for r in graph.context.refusals if r.kind == kind}
    return reasons - {Reason.UNKNOWN_ACTIVATION}


def test_every_channel_and_neuron_gets_its_gate(gated) -> None:
    graph, gm = gated()
    assert Counter(gate.split(":")[0] for gate in _ids(graph)) == {"channel": 2, "neuron": 5}
    targets = Counter(str(node.target) for node in gm.graph.nodes if "srr" in str(node.target))
    assert targets["srr.channel_linear.default"] == 2
    assert targets["srr.neuron_mlp.default"] == 2
    assert not gm.graph.find_nodes(op="call_function", target=F.linear)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_open_gates_change_nothing_and_count_everything(rows: int, gated) -> None:
    graph, gm = gated(rows)
    torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()))
    for gate in graph.context.gates:
        offered, executed, failed = gate.counters.tolist()
        assert offered == executed > 0
        assert offered % rows == 0
        assert failed == 0


def test_a_closed_gate_drops_what_scores_at_most_its_threshold(gated) -> None:
    graph, gm = gated()
    names = [node.name for node in graph.gm.graph.find_nodes(op="placeholder")]
    values = dict(zip(names, graph.inputs, strict=True))
    parameters = {graph.context.fqns[name]: values[name] for name in graph.context.fqns}
    x = next(value for name, value in values.items() if name not in graph.context.fqns)
    (gate,) = [gate for gate in graph.context.gates if gate.id == "channel:q.weight"]
    both = torch.cat([parameters["q.weight"], parameters["k.weight"]])
    score = x[0].abs() * both.norm(dim=0)
    threshold = score.sort().values[WIDTH // 2 - 1].item()
    gate.record[0] = threshold
    masked = torch.where(score <= threshold, 0.0, x[0])
    with torch.no_grad():
        hidden = torch.tanh(F.linear(masked, parameters["q.weight"], parameters["q.bias"]))
        hidden = hidden * F.linear(masked, parameters["k.weight"])
        expected = Model()
        expected.load_state_dict(parameters)
        y = x[0] + expected.o(hidden)
        y = y + expected.down(F.silu(expected.gate(y)) * expected.up(y))
        y = y + expected.two(torch.relu(expected.one(y)))
    torch.testing.assert_close(_run(graph, gm)[0], y)
    assert gate.counters.tolist() == [WIDTH, WIDTH // 2, 0]


def test_a_gate_that_keeps_too_little_keeps_everything(gated) -> None:
    graph, gm = gated()
    for gate in graph.context.gates:
        gate.record[0], gate.record[1] = 1e9, 0.5
    torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()))
    for gate in graph.context.gates:
        offered, executed, failed = gate.counters.tolist()
        assert (executed, failed) == (offered, 1)


def test_many_rows_are_not_gated_unless_asked_for(gated) -> None:
    graph, gm = gated(9)
    assert not graph.context.gates
    assert _reasons(graph, "neuron") == {Reason.MANY_ROWS}
    torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()), rtol=0, atol=0)
    graph, gm = gated(9, many_rows=True)
    assert {gate.phase for gate in graph.context.gates} == {"prefill"}
    torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()))


def test_kernels_of_fixed_rows_leave_what_a_run_tells(capture, source) -> None:
    """Before anything is made for a gate that would be taken out again."""
    for dynamic in (True, False):
        (graph,) = capture(Model(), torch.randn(3, WIDTH), dynamic=dynamic)
        gm = graph.find()
        value = next(v for v in map(_value, gm.graph.nodes) if isinstance(v, Tensor))
        gating = InsertGates(source(graph), CHANNELS_AND_NEURONS, value.fake_mode, fixed_rows=True)
        gating(gm, graph.context)
        assert bool(graph.context.gates) != dynamic
        assert (_reasons(graph, "neuron") == {Reason.UNKNOWN_ROWS}) == dynamic


def _value(node: Any) -> Any:
    return node.meta.get("example_value")


def test_levels_switch_kinds_off(gated) -> None:
    graph, _ = gated(levels=frozenset({"channel"}))
    assert {gate.split(":")[0] for gate in _ids(graph)} == {"channel"}
    assert len(graph.context.gates) == 6
    assert _reasons(graph, "neuron") == {Reason.LEVEL_OFF}
    graph, _ = gated(levels=frozenset())
    assert not graph.context.gates
    assert _reasons(graph, "channel") == {Reason.LEVEL_OFF}


def test_what_no_profile_covers_is_left(gated) -> None:
    graph, gm = gated(covers=lambda gate: gate == "channel:q.weight")
    assert _ids(graph) == ["channel:q.weight"]
    assert _reasons(graph, "neuron") == {Reason.NO_PROFILE}
    torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()))


def test_fuel_stops_after_so_many_gates(gated) -> None:
    everything = _ids(gated()[0])
    for fuel in range(len(everything) + 1):
        graph, gm = gated(fuel=fuel)
        # An MLP's gates come together.
        assert _ids(graph) == everything[: len(_ids(graph))]
        assert fuel <= len(_ids(graph)) < fuel + 3
        if fuel == 0:
            assert _reasons(graph, "channel") == {Reason.FUEL_SPENT}
        torch.testing.assert_close(_run(graph, gm), _run(graph, graph.copy()))


def test_without_a_source_every_pathway_says_that_no_budget_was_asked_for(capture) -> None:
    (graph,) = capture(Model(), torch.randn(1, WIDTH))
    gm = graph.find()
    before = gm.code
    value = next(node.meta["example_value"] for node in gm.graph.nodes)
    InsertGates(None, LEVELS, value.fake_mode)(gm, graph.context)
    gm.recompile()
    assert gm.code == before
    assert _reasons(graph, "channel") == _reasons(graph, "neuron") == {Reason.NO_BUDGET}
    assert _reasons(graph, "residual") == {Reason.NO_BUDGET}


def test_a_second_specialisation_shares_the_first_ones_gates(gated, source) -> None:
    graph, _ = gated()
    again = graph.find()
    value = next(node.meta["example_value"] for node in again.graph.nodes)
    before = list(graph.context.gates)
    graph.context.gates = []
    InsertGates(source(graph), CHANNELS_AND_NEURONS, value.fake_mode)(again, graph.context)
    pairs = zip(before, graph.context.gates, strict=True)
    assert all(
        a.record.data_ptr() == b.record.data_ptr() and a.counters.data_ptr() == b.counters.data_ptr()
        for a, b in pairs
    )
