"""Partition: regions in order compute what the whole graph does, and what repeats becomes one region each time."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from srrc.passes.partition import LONGEST_PERIOD, Region, group_repeats, partition
from srrc.runtime.driver import Step, build_driver

OPERATIONS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "matmul": lambda a, b: a @ b * 0.5,
    "transpose": lambda a, b: a.t(),
    "row": lambda a, b: a[1].expand(4, 4),
    "flip": lambda a, b: a.flip(0),
    "add_": lambda a, b: a.add_(b.clone()),
    "neg_": lambda a, b: a.neg_(),
    "row_": lambda a, b: a[2].mul_(b[0].clone()).expand(4, 4),
    "copy_": lambda a, b: a.t().copy_(b.clone()),
}
WRITES = {"add_", "neg_", "row_", "copy_"}


@st.composite
def programs(draw: Any) -> tuple[list[tuple[str, int, int]], list[int], int]:
    """(operation, index of its operands among the values so far), where to cut, number of outputs."""
    names = draw(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=14))
    program = [(name, draw(st.integers(0, 3)), draw(st.integers(0, 3))) for name in names]
    return program, draw(st.lists(st.integers(0, 30), max_size=6)), draw(st.integers(1, 4))


def _program(steps: Sequence[tuple[str, int, int]], outputs: int) -> fx.GraphModule:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        values, fresh = [x, y], [x.clone(), y.clone()]
        for name, left, right in steps:
            # Expanded values overlap with themselves, which may not be written to.
            pool = fresh if name in WRITES else values
            operand = pool[-1 - left % len(pool)]
            result = OPERATIONS[name](operand, values[-1 - right % len(values)])
            values.append(result)
            if name in {"add", "mul", "matmul", "flip"} or (
                name == "transpose" and any(operand is each for each in fresh)
            ):
                fresh.append(result)
        return tuple(values[-outputs:])

    return fx.symbolic_trace(function)


def _with_values(gm: fx.GraphModule, *inputs: Tensor) -> fx.GraphModule:
    """`gm` with fake values on its nodes, as Dynamo leaves them."""

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            n.meta["example_value"] = super().run_node(n)
            return n.meta["example_value"]

    with FakeTensorMode() as mode:
        Recorder(gm).run(*(mode.from_tensor(value) for value in inputs))
    return gm


def _drive(gm: fx.GraphModule, regions: Sequence[Region], *inputs: Tensor) -> Any:
    return build_driver(gm, [Step(r.module(gm), r.inputs, r.outputs) for r in regions]).run(*inputs)


def _cut(gm: fx.GraphModule, places: Sequence[int]) -> list[Region]:
    nodes = [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    return partition(gm, [nodes[place % len(nodes)] for place in places] if nodes else [])


@given(programs())
@settings(deadline=None)
def test_cutting_anywhere_changes_nothing(drawn: Any) -> None:
    program, places, outputs = drawn
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    gm = _with_values(_program(program, outputs), x, y)
    regions = _cut(gm, places)
    order = [node for region in regions for node in region.nodes]
    assert order == [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    theirs, ours = [x.clone(), y.clone()], [x.clone(), y.clone()]
    expected, actual = gm(*theirs), _drive(gm, regions, *ours)
    for left, right in zip((*expected, *theirs), (*actual, *ours), strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)


@given(programs())
@settings(deadline=None)
def test_regions_of_one_key_may_stand_in_for_each_other(drawn: Any) -> None:
    program, places, outputs = drawn
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    gm = _with_values(_program(program, outputs), x, y)
    regions = _cut(gm, places)
    first: dict[str, Any] = {}
    steps = [Step(first.setdefault(r.key, r.module(gm)), r.inputs, r.outputs) for r in regions]
    expected, actual = gm(x.clone(), y.clone()), build_driver(gm, steps).run(x.clone(), y.clone())
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)


@given(st.text("abc", max_size=30))
def test_group_repeats_covers_the_sequence_in_order(items: str) -> None:
    groups = group_repeats(items, key=str)
    assert "".join(item for group in groups for item in group) == items
    assert all(groups)
    for group in groups:
        assert len(group) == 1 or groups.count(group) > 1, "a period that does not repeat was merged"


@pytest.mark.parametrize(
    ("items", "groups"),
    [
        ("", ""),
        ("a", "a"),
        ("aaa", "a a a"),
        ("pababab", "p ab ab ab"),
        ("pabababh", "p ab ab ab h"),
        ("pabcabch", "p abc abc h"),
        ("aabaabx", "aab aab x"),
        ("paabaab", "p aab aab"),
        ("abxabyab", "a b x a b y a b"),
        ("ababcdcd", "ab ab cd cd"),
    ],
)
def test_group_repeats(items: str, groups: str) -> None:
    assert ["".join(group) for group in group_repeats(items, key=str)] == groups.split()


def test_a_period_that_is_too_long_is_not_looked_for() -> None:
    period = [str(index) for index in range(LONGEST_PERIOD + 1)]
    assert all(len(group) == 1 for group in group_repeats(period * 2, key=str))
    assert len(group_repeats(period[:-1] * 2, key=str)) == 2


def _layers(x: Tensor, *weights: Tensor) -> tuple[Tensor]:
    x = x.sin()
    for weight in weights:
        x = x + torch.relu(x @ weight)
        x = x + torch.tanh(x @ weight)
    return (x.cos(),)


def test_equal_layers_become_one_region_each_with_one_key() -> None:
    x, weights = torch.randn(2, 4), [torch.randn(4, 4) for _ in range(3)]

    def function(x: Tensor, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor]:
        return _layers(x, u, v, w)

    gm = _with_values(fx.symbolic_trace(function), x, *weights)
    cuts = [node for node in gm.graph.nodes if node.name.startswith(("add", "sin"))]
    regions = partition(gm, cuts)
    assert [len(region.nodes) for region in regions] == [1, 6, 6, 6, 1]
    assert len({region.key for region in regions}) == 3
    (expected,), (actual,) = gm(x, *weights), _drive(gm, regions, x, *weights)
    assert torch.equal(expected, actual)


def test_inputs_come_in_order_of_use_and_outputs_in_order_of_definition() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        c = b + a
        d = c * 2
        e = d - c
        return e, d

    gm = _with_values(fx.symbolic_trace(function), torch.ones(2), torch.ones(2))
    (region,) = partition(gm, [])
    assert [node.name for node in region.inputs] == ["b", "a"]
    assert [node.name for node in region.outputs] == ["mul", "sub"]


@pytest.mark.parametrize("state", ["grad", "autocast", "vmap"])
def test_no_cut_where_the_interpreter_has_another_state(state: str, capture) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x = x + x.sin()
        if state == "grad":
            with torch.enable_grad():
                x = x + x.sin()
        elif state == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = x @ y + x.sin()
        else:
            x = torch.func.vmap(lambda row: (row + row.sin()) * 2 + row)(x)
        return x + x.sin()

    (graph,) = capture(function, torch.randn(4, 4), torch.randn(4, 4))
    gm = graph.gm
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    marks = [
        index for index, node in enumerate(nodes) if not isinstance(node.meta.get("example_value"), Tensor)
    ]
    assert marks, "Dynamo put no such node into the graph"
    regions = partition(gm, nodes)
    inside = set(nodes[marks[0] : marks[-1] + 1])
    assert sum(bool(inside & set(region.nodes)) for region in regions) == 1
    with torch.no_grad():
        (expected,), (actual,) = gm(*graph.arguments()), _drive(gm, regions, *graph.arguments())
    assert torch.equal(expected, actual)


def test_a_module_of_its_own_may_do_anything() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    gm = fx.symbolic_trace(model)
    nodes = [node for node in gm.graph.nodes if node.op == "call_module"]
    assert len(partition(gm, nodes)) == 1
