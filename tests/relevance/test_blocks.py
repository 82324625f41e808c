"""Blocks of neurons: which go together, and probes that predict what they contribute."""

import pytest
import torch

import srrc
from srrc.errors import OptionError
from srrc.models_zoo import families
from srrc.ops import block_gate
from srrc.relevance.blocks import BlockFit, NeuronTotal


def test_neurons_that_contribute_most_are_in_the_first_block() -> None:
    mean = NeuronTotal(torch.tensor([1.0, 1.0, 10.0, 1.0, 1.0]))
    mean.add(torch.tensor([[0.1, -3.0, 1.0, 0.0, -2.0], [0.1, 3.0, -1.0, 0.0, 2.0]]))
    assert mean.split(2).tolist() == [1, 0, 0, 1, 0]
    assert mean.split(5).tolist() == [3, 1, 0, 4, 2]


def test_a_probe_tells_tokens_that_need_a_block_from_others() -> None:
    generator = torch.Generator().manual_seed(0)
    of = torch.tensor([0, 1, 0, 1, 0, 1])
    down = torch.randn(8, 6, generator=generator)
    fit = BlockFit(4, of, down)
    for _ in range(4):
        x = torch.randn(200, 4, generator=generator)
        hidden = torch.randn(200, 6, generator=generator) * torch.where(of == 1, (2 * x[:, :1]).exp(), 1.0)
        fit.see("x", x)
        fit.see("hidden", hidden)
    probes = fit.probes()
    assert probes.shape == (2, 5)
    x = torch.zeros(2, 4)
    x[0, 0], x[1, 0] = 1.0, -1.0
    scores = block_gate.score(x, probes)
    assert scores[0, 1] > 4 * scores[1, 1], "the second block grows with the first feature"
    assert 0.5 < scores[0, 0] / scores[1, 0] < 2, "the first does not"


def test_calibration_measures_them_in_place_of_other_gates_on_mlps() -> None:
    tokens = torch.arange(64).reshape(2, 32) % 50 + 4
    batches = [{"input_ids": (tokens + shift) % 100, "use_cache": False} for shift in range(3)]
    profile = srrc.calibrate(
        families.tiny("llama").model, None, batches=batches, quick=True, blocks=4, progress=False
    )
    on_mlps = [gate for gate in profile.gates.values() if gate.kind == "neuron"]
    assert len(on_mlps) == 2
    for gate in on_mlps:
        assert gate.id.endswith("/blocks")
        assert gate.cost.units == 4
        assert gate.drift[-1] > gate.drift[1] >= 0
        assert profile.vectors[f"{gate.id}/of"].unique().tolist() == [0, 1, 2, 3]
    assert any(gate.kind == "channel" for gate in profile.gates.values())


@pytest.mark.parametrize("blocks", [1, 0, 2.5])
def test_a_number_that_splits_nothing_is_refused(blocks: int) -> None:
    with pytest.raises(OptionError, match="does not split an MLP"):
        srrc.calibrate(families.tiny("llama").model, None, batches=[{}], blocks=blocks)
