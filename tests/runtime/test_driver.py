"""The driver: right results, whatever the outputs look like, and every value dropped after its last use."""

import gc
import linecache
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from srrc.passes.partition import Region, partition
from srrc.runtime.driver import Condition, Driver, Step, build_driver


def _driver(function: Callable[..., Any], *cuts: str) -> tuple[fx.GraphModule, list[Region], Driver]:
    """`function` as a graph, cut after the nodes of these names and run region by region."""
    gm = fx.symbolic_trace(function)
    regions = partition(gm, [node for node in gm.graph.nodes if node.name in cuts])
    return gm, regions, build_driver(gm, [Step(r.module(gm), r.inputs, r.outputs) for r in regions])


def test_regions_compute_what_the_whole_does() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        c = a + b
        d = c * 2
        return d - a, c

    gm, regions, driver = _driver(function, "add", "mul")
    assert len(regions) == 3
    a, b = torch.randn(3), torch.randn(3)
    for ours, theirs in zip(driver.run(a, b), gm(a, b), strict=True):
        assert torch.equal(ours, theirs)


def test_outputs_may_be_inputs_constants_nested_and_twice_the_same() -> None:
    def function(a: Tensor, b: Tensor) -> Any:
        c = a + b
        return (c, [c, a, None], 3, (b,), "x")

    _, _, driver = _driver(function)
    a, b = torch.randn(3), torch.randn(3)
    c, (again, same, nothing), three, (other,), text = driver.run(a, b)
    assert torch.equal(c, a + b)
    assert again is c
    assert same is a
    assert other is b
    assert (nothing, three, text) == (None, 3, "x")


def test_a_graph_of_no_nodes_returns_its_inputs() -> None:
    _, regions, driver = _driver(lambda a, b: (b, a))
    assert regions == []
    assert driver.run(1, 2) == (2, 1)


def test_a_region_that_only_writes_still_runs() -> None:
    def function(a: Tensor) -> tuple[Tensor]:
        a.add_(1)
        b = a * 2
        a.mul_(3)
        return (b,)

    _, regions, driver = _driver(function, "add_", "mul")
    assert [len(region.outputs) for region in regions] == [0, 1, 0]
    a = torch.ones(2)
    (b,) = driver.run(a)
    assert b.tolist() == [4.0, 4.0]
    assert a.tolist() == [6.0, 6.0]


def test_tensors_that_the_graph_holds_are_bound_and_stay_the_same_tensor() -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("threshold", torch.tensor([1.0]))

        def forward(self, a: Tensor) -> tuple[Tensor]:
            return ((a + self.threshold) * self.threshold,)

    holder = Holder()
    gm, regions, driver = _driver(holder, "add")
    assert len(regions) == 2
    assert driver.run(torch.tensor([2.0]))[0].item() == 3.0
    gm.threshold.fill_(5.0)
    assert driver.run(torch.tensor([2.0]))[0].item() == 35.0


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[weakref.ref[Tensor]] = []
    seen: list[list[bool]] = []

    def watched(module: fx.GraphModule) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            results = module(*args)
            del args
            gc.collect()
            seen.append([reference() is not None for reference in alive])
            alive.extend(weakref.ref(result) for result in results)
            return results

        return run

    def function(a: Tensor) -> tuple[Tensor, Tensor]:
        b = a + 1
        c = b * 2
        d = c - 3
        return d.neg(), b

    gm = fx.symbolic_trace(function)
    regions = partition(gm, [node for node in gm.graph.nodes if node.name in ("add", "mul", "sub")])
    driver = build_driver(gm, [Step(watched(r.module(gm)), r.inputs, r.outputs) for r in regions])
    driver.run(torch.randn(3))
    # Each region sees which of the values before it live: b (returned) always, c and d one region further.
    assert seen == [[], [True], [True, True], [True, False, True]]


def test_an_output_that_nobody_reads_is_dropped_at_once() -> None:
    gm = fx.symbolic_trace(lambda a: (a + 1,))
    (region,) = partition(gm, [])
    node = region.outputs[0]
    gm.graph.output_node().args = ((1,),)
    driver = build_driver(gm, [Step(region.module(gm), region.inputs, (node,))])
    assert "del v" in driver.source
    assert driver.run(torch.ones(1)) == (1,)


def test_the_code_can_be_read_in_a_traceback() -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("here")

    gm = fx.symbolic_trace(lambda a: (a + 1,))
    (region,) = partition(gm, [])
    driver = build_driver(gm, [Step(fail, region.inputs, region.outputs)])
    with pytest.raises(ValueError, match="here") as caught:
        driver.run(torch.ones(1))
    frame = caught.traceback[1]
    assert "r0(a0)" in linecache.getline(str(frame.frame.code.raw.co_filename), frame.lineno + 1)


def test_a_step_with_a_condition_runs_or_hands_on_its_bypass() -> None:
    def function(keep: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor]:
        c = a + b
        return (c * b + a,)

    gm = fx.symbolic_trace(function)
    keep, a, b, c, product, total, _ = gm.graph.nodes
    calls: list[int] = []

    def multiply(x: Tensor, y: Tensor) -> tuple[Tensor]:
        calls.append(1)
        return (x * y,)

    steps = [
        Step(lambda x, y: (x + y,), (a, b), (c,)),
        Step(multiply, (c, b), (product,), Condition(keep, c)),
        Step(lambda x, y: (x + y,), (product, a), (total,)),
    ]
    driver = build_driver(gm, steps)
    x, y = torch.randn(3), torch.randn(3)
    for kept, ran in (([True], 1), ([True, True], 2), ([False], 2), ([False, False], 2), ([False, True], 3)):
        (found,) = driver.run(torch.tensor(kept), x, y)
        assert len(calls) == ran
        assert torch.equal(found, (x + y) * y + x if any(kept) else x + y + x)
    assert "if runs(a0):" in driver.source


def test_a_condition_and_its_bypass_are_kept_until_they_are_read() -> None:
    def function(a: Tensor) -> tuple[Tensor]:
        return ((a + 1) * ((a > 0) + a),)

    gm = fx.symbolic_trace(function)
    a, plus, keep, both, product, _ = gm.graph.nodes
    dropped: list[weakref.ref[Tensor]] = []

    def three(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = (x + 1, (x > 0).any(), x + 2)
        dropped.extend(map(weakref.ref, made))
        return made

    steps = [
        Step(three, (a,), (plus, keep, both)),
        Step(lambda x: (2 * x,), (plus,), (product,), Condition(keep, both)),
    ]
    driver = build_driver(gm, steps)
    (found,) = driver.run(-torch.ones(2))
    assert torch.equal(found, torch.ones(2))
    assert [reference() is None for reference in dropped] == [True, True, False], (
        "the bypass is the result itself"
    )
    (found,) = driver.run(torch.ones(2))
    assert torch.equal(found, 4 * torch.ones(2))
