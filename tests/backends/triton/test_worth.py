"""Whether gated ops pay, with times that are made up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from srrc.backends.triton import tune
from srrc.backends.triton.worth import Part, channel_linear, head, neuron_mlp, worth_it

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def a_card(tmp_path: Path) -> Iterator[None]:
    """The CPU is taken for a card of which nothing is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRRC_CACHE_DIR", str(tmp_path))
        patch.setattr(tune, "_card", lambda device: "some.json")
        patch.setattr(tune, "_cards", {})
        yield


def timed(gated: float, dense: float, seen: list[Any]) -> Callable[[tune.Call], float]:
    def timer(call: Any) -> float:
        seen.append(call)
        return dense if call.func is F.linear else gated

    return timer


def part(kind: str, rows: int, inputs: int, *dense: int, dtype: torch.dtype = torch.float32) -> Part:
    return Part(kind, rows, inputs, sum(dense), dtype, dense)


COARSE = Part("coarse", 1, 64, 480, torch.int8)
PARTS = {
    "linear": [part("channel", 1, 64, 96)],
    "mlp": [part("channel", 2, 64, 128), part("row", 2, 64, 128), part("channel", 2, 128, 64)],
    "head": [part("head", 1, 64, 480), COARSE],
    "nothing by channel": [part("dense", 1, 64, 96), part("channel", 1, 64, 96)],
}


@pytest.mark.parametrize("name", PARTS)
def test_the_quicker_is_had(name: str) -> None:
    assert worth_it(PARTS[name], CPU, timed(1.0, 3.0, []))


@pytest.mark.parametrize("name", PARTS)
def test_what_is_slower_is_not(name: str) -> None:
    assert not worth_it(PARTS[name], CPU, timed(1.0, 0.4, []))


def test_what_is_coarse_comes_on_top() -> None:
    assert not worth_it(PARTS["head"], CPU, timed(1.0, 1.5, []))


def test_a_launch_of_three_stands_for_three_products() -> None:
    both = timed(1.0, 0.4, [])
    assert worth_it([part("channel", 1, 64, 32, 32, 32)], CPU, both)
    assert not worth_it([part("channel", 1, 64, 32, 32)], CPU, both)


def test_nothing_is_measured_twice() -> None:
    seen: list[Any] = []
    worth_it(PARTS["mlp"], CPU, timed(1.0, 3.0, seen))
    measured = len(seen)
    assert measured > 0
    assert worth_it(PARTS["mlp"], CPU, timed(3.0, 1.0, seen))
    assert len(seen) == measured


def test_what_cannot_be_measured_is_had() -> None:
    def fails(call: tune.Call) -> float:
        raise RuntimeError("no such card")

    assert worth_it(PARTS["linear"], CPU, fails)


def test_without_room_for_a_weight_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("srrc.backends.triton.worth._calls", full)
    assert worth_it(PARTS["linear"], CPU, timed(3.0, 1.0, []))


def test_what_is_timed_computes() -> None:
    """Each call runs, under the interpreter, and gives as many numbers as its product has."""
    seen: list[Any] = []
    for parts in PARTS.values():
        worth_it(parts, CPU, timed(1.0, 3.0, seen))
    sizes = set()
    for call in {str(each.args): each for each in seen}.values():
        found = call()
        sizes.add(tuple((found[0] if isinstance(found, tuple) else found).shape))
    assert {(1, 96), (2, 128), (2, 64), (1, 480)} <= sizes


def test_parts_of_ops() -> None:
    def by_input(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(inputs, outputs).t()

    x, by_row = torch.randn(1, 2, 8), torch.randn(12, 8)
    found = channel_linear(x, [by_input(4, 8), by_input(6, 8), by_row], [None] * 3)
    assert [(each.kind, each.dense) for each in found] == [("channel", (4, 6)), ("dense", (12,))]
    biased = channel_linear(x, [by_input(4, 8)] * 5, [None, None, *[torch.zeros(4)] * 3])
    assert [each.dense for each in biased] == [(4, 4), (4, 4, 4)]
    assert [each.dense for each in channel_linear(x, [by_input(4, 8)] * 4, [None] * 4)] == [(4, 4, 4), (4,)]
    mlp = (by_input(12, 8), None, by_row, None, by_input(8, 12), None, "silu", *[None] * 6)
    assert [each.kind for each in neuron_mlp(x, *mlp, True)] == ["channel", "row", "channel"]
    assert [each.kind for each in neuron_mlp(x, *mlp, False)] == ["channel", "dense", "channel"]
    both = (*mlp[:2], by_input(12, 8), *mlp[3:])
    assert [each.dense for each in neuron_mlp(x, *both, False)] == [(12, 12), (8,)]
    plain = (None, None, by_input(12, 8), None, by_input(8, 12), None, "gelu", *[None] * 6)
    assert [each.kind for each in neuron_mlp(x, *plain, False)] == ["channel", "channel"]
    tokens = head(x, torch.randn(50, 8), None, None, None, torch.zeros(50, 8, dtype=torch.int8))
    assert [(each.kind, each.rows, each.inputs, each.dense) for each in tokens] == [
        ("head", 2, 8, (50,)),
        ("coarse", 2, 8, ()),
    ]
