from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from srrc.errors import ModelError
from srrc.relevance.replay import OPEN, Replay, closed

MLP = ["neuron:blocks.{}.gate.weight/input", "neuron:blocks.{}.gate.weight/down"]


def test_every_gate_is_found_in_graph_order(small: Any) -> None:
    names = [place.gate.id for place in small.replay.places]
    expected = [f"channel:blocks.{layer}.mix.weight" for layer in range(2)]
    assert names == [
        expected[0], *(name.format(0) for name in MLP), expected[1], *(name.format(1) for name in MLP),
        "channel:head.weight",
    ]  # fmt: skip
    assert [place.row for place in small.replay.places] == [0, 0, 2, 0, 0, 2, 0]


def test_open_gates_change_nothing(small: Any) -> None:
    arguments = small.arguments()
    outputs = small.replay.finish(small.replay.begin(arguments), 0)
    torch.testing.assert_close(small.output(outputs), small.model(small.batch(0)))


def test_a_suffix_gives_what_the_whole_graph_gives(small: Any) -> None:
    replay, arguments = small.replay, small.arguments()
    gates = [place.gate for place in replay.places]
    dense = small.output(replay.finish(replay.begin(arguments), 0))
    values, position = replay.begin(arguments), 0
    for place in replay.places:
        replay.advance(values, position, place.index)
        position = place.index
        alive = set(values)
        with closed({place.gate.id: (0.5, 0.0)}, gates):
            suffix = small.output(replay.finish(values, place.index))
            whole = small.output(replay.finish(replay.begin(arguments), 0))
        assert torch.equal(suffix, whole)
        assert not torch.equal(suffix, dense), place.gate.id
        assert set(values) == alive, "a suffix must not touch the values it starts from"


def test_values_that_nothing_reads_again_are_dropped(small: Any) -> None:
    replay = small.replay
    values = replay.begin(small.arguments())
    replay.advance(values, 0, replay.places[-1].index)
    computed = [node for node in values if node.op not in {"placeholder", "get_attr"}]
    assert len(computed) == 1, computed


def test_records_are_open_again_afterwards(small: Any) -> None:
    gates = [place.gate for place in small.replay.places]

    def fail() -> None:
        with closed({gates[0].id: (0.5, 0.25)}, gates):
            assert gates[0].record.tolist() == [0.5, 0.25]
            assert gates[1].record.tolist() == list(OPEN)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(gate.record.tolist() == list(OPEN) for gate in gates)


def test_a_graph_that_writes_to_its_values_is_refused() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return x * 2

    with pytest.raises(ModelError, match=r"writes to its own values .*without a cache"):
        Replay(fx.symbolic_trace(Writes()), [])
