from typing import Any

import pytest
import torch

from srrc.profile import Profile
from srrc.relevance import information
from srrc.relevance.calibrate import measure_gates, run_dense
from srrc.relevance.information import Settings
from srrc.relevance.random_routing import randomised

SETTINGS = Settings(measured=(0.5,))


@pytest.fixture
def profile(small: Any) -> Profile:
    return Profile(measure_gates(small.replay, [small.arguments()], small.output, SETTINGS), ())


def test_it_drops_as_much_by_lot(small: Any, profile: Profile) -> None:
    random = randomised(profile)
    x = torch.randn(200, 24) * 0.3
    for name in ("channel:head.weight", "neuron:blocks.1.gate.weight/input"):
        norm = random.vectors[f"{name}/norm"]
        for fraction in (0.25, 0.5, 0.75):
            kept = x.abs() * norm > random.gates[name].threshold(fraction)
            assert 1 - kept.float().mean().item() == pytest.approx(fraction, abs=0.06)
            # The same ones for nearly every token: chosen by lot, not by the input.
            assert kept.float().mean(0).sub(0.5).abs().mul(2).mean() > 0.9


def test_it_is_far_worse_than_relevance(small: Any, profile: Profile) -> None:
    random = randomised(profile)
    gates = [place.gate for place in small.replay.places]
    arguments = small.arguments()
    reference = run_dense(small.replay, arguments, small.output, SETTINGS)
    drifts = []
    for each in (profile, random):
        for gate in gates:
            put_norm(small, gate, each)
        records = {gate.id: (each.gates[gate.id].threshold(0.3), 0.0) for gate in gates}
        drifts.append(information.together(small.replay, arguments, reference, small.output, records).mean)
    assert drifts[1] > 3 * drifts[0]


def put_norm(small: Any, gate: Any, profile: Profile) -> None:
    """Write the profile's norm, where it has one, into the graph's buffer."""
    norm = profile.vectors.get(f"{gate.id}/norm")
    if norm is not None:
        node = next(small.replay.nodes[p.index] for p in small.replay.places if p.gate is gate)
        position = {"input": 8, "down": 10}.get(gate.id.rsplit("/", 1)[-1], 3)
        getattr(small.gated.gm, str(node.args[position].target)).copy_(norm)


def test_the_lot_is_drawn_from_a_seed(profile: Profile) -> None:
    names = [f"{name}/norm" for name in profile.gates]
    one, same, other = randomised(profile, 1), randomised(profile, 1), randomised(profile, 2)
    assert all(torch.equal(one.vectors[name], same.vectors[name]) for name in names)
    assert not any(torch.equal(one.vectors[name], other.vectors[name]) for name in names)
    assert profile.vectors == {}
