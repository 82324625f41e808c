"""The dense answer beside a routed one: what it reads, what it leaves as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

from srrc.runtime.feedback import answer
from srrc.runtime.gates import Gate


def gate(name: str = "a") -> Gate:
    return Gate(name, "decode", torch.tensor([0.5, 0.25]), torch.tensor([7, 5, 1]), 1.0, 1.0)


def test_it_runs_with_all_gates_open_and_leaves_them_as_they_were() -> None:
    gates, seen = [gate("a"), gate("b")], []

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append([each.record.tolist() for each in gates])
        for each in gates:
            each.counters.add_(1)
        return x, x + 1

    assert answer(run, [torch.zeros(2)], gates, set(), 1).tolist() == [1.0, 1.0]
    alone = answer(run, [torch.zeros(2)], gates, set(), 0, {"b": (3.0, 0.5)})
    assert alone.tolist() == [0.0, 0.0]
    assert seen == [[[-1.0, 0.0]] * 2, [[-1.0, 0.0], [3.0, 0.5]]]
    assert [each.record.tolist() for each in gates] == [[0.5, 0.25]] * 2
    assert [each.counters.tolist() for each in gates] == [[7, 5, 1]] * 2


@pytest.mark.parametrize("in_place", [False, True])
def test_what_a_call_writes_to_is_as_before(in_place: bool) -> None:
    cache, seen = torch.zeros(2, 3), []

    def run(cache: Tensor) -> tuple[Tensor]:
        seen.append(cache.data_ptr())
        cache += 1
        return (cache,)

    found = answer(run, [cache], [gate()], set(), 0, in_place=in_place)
    assert cache.tolist() == [[0.0] * 3] * 2
    assert found.tolist() == [[1.0] * 3] * 2
    assert (seen[0] == cache.data_ptr()) is in_place


def test_parameters_are_not_copied() -> None:
    weight, seen = torch.zeros(2), []
    answer(lambda w: seen.append(w) or (w,), [weight], [gate()], {id(weight)}, 0)
    assert seen[0] is weight


@pytest.mark.parametrize("in_place", [False, True])
def test_an_expanded_mask_is_not_written_to(in_place: bool) -> None:
    """One place in memory is several elements: a copy into it would raise."""
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).expand(8, 1, 4, 4)
    found = answer(lambda m: (m.float(),), [mask], [gate()], set(), 0, in_place=in_place)
    assert found.shape == (8, 1, 4, 4)


def test_copies_have_the_strides_that_the_graph_was_compiled_for() -> None:
    window = torch.arange(12.0).view(3, 4)[:, 1:3]
    seen: list[Tensor] = []
    answer(lambda w: seen.append(w) or (w,), [window], [gate()], set(), 0)
    assert seen[0].stride() == window.stride()
    assert seen[0].tolist() == window.tolist()
    assert seen[0].data_ptr() != window.data_ptr()


def test_where_it_raises_all_is_as_before() -> None:
    cache, held = torch.zeros(2), gate()

    def fails(cache: Tensor) -> Any:
        cache += 1
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        answer(fails, [cache], [held], set(), 0, in_place=True)
    assert cache.tolist() == [0.0, 0.0]
    assert held.record.tolist() == [0.5, 0.25]
