"""Gates while they are trained: what they drop, where gradients go, and that it is what the ops compute."""

from typing import Any

import pytest
import torch
from torch import Tensor

import srrc
from srrc.gated_model import GatedModel
from srrc.models_zoo import families
from srrc.profile import Profile
from srrc.relevance.replay import Replay, closed
from srrc.training.batches import Batches
from srrc.training.deciding import AtFractions, Drawn
from srrc.training.pretrain import pretrain
from srrc.training.routed import Routed
from srrc.training.router import NEIGHBOURS, Fixed, Router

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))
LENGTH = 24


class Held:
    """A tiny model, calibrated, its gated graph, and arguments of it."""

    def __init__(self, letters: Any) -> None:
        torch._dynamo.reset()
        self.model = families.tiny("llama").model
        self.profile: Profile = srrc.calibrate(
            self.model, letters, TEXT, windows=4, length=LENGTH, neurons=True, progress=False
        )
        self.tokens = torch.tensor(letters(TEXT)["input_ids"])
        self.gated = GatedModel(self.model, self.call(self.tokens[: 2 * LENGTH].view(2, LENGTH)))
        self.gated.insert(self.profile.covers, self.profile.vectors)
        self.routed = Routed(self.gated)
        ids = self.tokens[100 : 100 + 2 * LENGTH].view(2, LENGTH).clone()
        self.arguments = [
            each.detach() if isinstance(each, Tensor) else each
            for each in self.gated.arguments(self.call(ids))
        ]

    def call(self, ids: Tensor) -> dict[str, Any]:
        return {"input_ids": ids, "use_cache": False}

    def fractions(self, fraction: float) -> dict[str, float]:
        # Fractions are of all units, those that an earlier gate of the MLP dropped among them.
        return {gate: fraction + 0.2 * gate.endswith("/down") for gate in self.routed.gates}

    def router(self) -> Router:
        return Router(self.routed.gates, self.routed.widths)


@pytest.fixture(scope="module")
def held(letters: Any) -> Held:
    return Held(letters)


def test_open_gates_give_the_models_own_output(held: Held) -> None:
    ids = held.tokens[100 : 100 + 2 * LENGTH].view(2, LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(held.routed.outputs(held.arguments, None), held.model(ids).logits)


def agree(gated: GatedModel, arguments: list[Any], gate: str, router: Fixed | None) -> None:
    """Asserts that a gate alone drops in training what its op drops at the threshold that training came to."""
    routed, replay = Routed(gated), Replay(gated.gm, gated.gates)
    seen: dict[str, Tensor] = {}
    deciding = AtFractions({gate: 0.4}, router, skip=0)

    def watch(name: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        if name == gate:
            seen["threshold"] = deciding._quantile(
                deciding._log_score(name, value, norm, features), 0.4
            ).exp()
        return deciding(name, value, norm, features)

    with torch.no_grad():
        ours = routed.outputs(arguments, watch)
        with closed({gate: (float(seen["threshold"]) * (1 + 1e-6), 0.0)}, gated.gates):
            theirs = gated.output(replay.finish(replay.begin(arguments), 0))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_is_dropped_is_what_the_ops_drop_at_the_same_thresholds(held: Held) -> None:
    for gate in list(held.routed.gates)[:6]:
        agree(held.gated, held.arguments, gate, None)


def test_the_asked_fraction_is_dropped_whatever_was_learned(held: Held) -> None:
    router = held.router()
    with torch.no_grad():
        for parameter in router.parameters.values():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    kept = {}

    class Counting(AtFractions):
        def __call__(self, gate: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
            result = super().__call__(gate, value, norm, features)
            kept[gate] = float((result[:, 1:] != 0).float().mean() / (value[:, 1:] != 0).float().mean())
            return result

    with torch.no_grad():
        for (
            gate
        ) in held.routed.gates:  # one at a time: what an earlier gate of an MLP drops, a later one need not
            held.routed.outputs(held.arguments, Counting({gate: 0.3}, router))
            assert kept[gate] == pytest.approx(0.7, abs=0.02), gate
    assert kept.keys() == held.routed.gates.keys()


@pytest.mark.parametrize("gumbel", [False, True])
def test_gradients_reach_norms_and_emphasis(held: Held, gumbel: bool) -> None:
    router = held.router()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dense = held.routed.outputs(held.arguments, None)
    deciding = AtFractions(held.fractions(0.4), router, gumbel=gumbel, draw=draw)
    loss = (held.routed.outputs(held.arguments, deciding) - dense).square().sum()
    loss.backward()
    for name, parameter in router.parameters.items():
        if name.endswith("projection"):
            continue  # the heads are zero at first
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_step_along_the_gradient_helps(held: Held) -> None:
    router, fractions = held.router(), held.fractions(0.5)
    with torch.no_grad():
        dense = held.routed.outputs(held.arguments, None)

    def drift() -> Tensor:
        return (held.routed.outputs(held.arguments, AtFractions(fractions, router)) - dense).square().mean()

    optimiser = torch.optim.Adam(list(router.parameters.values()), lr=0.005)
    seen = []
    for _ in range(25):
        optimiser.zero_grad()
        now = drift()
        now.backward()
        optimiser.step()
        seen.append(now.item())
    assert sum(seen[-5:]) / 5 < 0.95 * seen[0]  # decisions are hard: single steps are noisy


def test_a_policys_surrogate_pulls_towards_draws_that_fared_well(held: Held) -> None:
    router = held.router()
    drawn = Drawn(held.fractions(0.4), router, draw=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = {gate: float(router.probe(gate)[-1]) for gate in held.routed.gates}
    held.routed.outputs(held.arguments, drawn)
    gate = next(iter(drawn.noises))
    advantage = drawn.noises[gate][..., 0]  # rows that drew more fared better
    drawn.surrogate(advantage).backward()
    head = router.parameters[f"{gate}/head"]
    assert head.grad is not None
    assert float(head.grad[-1]) < 0  # descending raises the bias
    assert before[gate] == 0.0
    assert set(drawn.kept) == set(held.routed.gates)


def test_neighbouring_layers_share_a_projection() -> None:
    gates = {f"channel:layers.{layer}.q": 8 for layer in range(5)}
    router = Router(gates, dict.fromkeys(gates, 6))
    projections = [name for name in router.parameters if name.endswith("projection")]
    assert len(projections) == -(-5 // NEIGHBOURS)
    vectors = router.vectors({gate: torch.ones(8) for gate in gates})
    assert torch.equal(vectors["channel:layers.0.q/norm"], torch.ones(8))
    assert vectors["channel:layers.4.q/emphasis"].shape == (7,)


def test_fixed_emphasis_moves_what_is_kept_between_rows(held: Held) -> None:
    gate = next(iter(held.routed.gates))
    features = torch.randn(2, 5, 16)
    probe = torch.cat((torch.randn(16), torch.zeros(1)))
    shift = Fixed({gate: probe}).shift(gate, features)
    assert shift.shape == (2, 5, 1)
    assert float(Fixed({}).shift(gate, features)) == 0.0


def test_pretraining_finds_emphasis_that_a_profile_holds_and_ops_follow(held: Held, letters: Any) -> None:
    batches = Batches({"text": held.tokens}, 2, LENGTH)
    traced = pretrain(held.gated, held.profile, batches, held.call, steps=4, checks=2)
    assert traced.power in traced.drifts
    assert sum(traced.drifts[traced.power]) <= sum(traced.drifts[0.0]) * 1.5
    assert 0 < traced.explained < 1
    vectors = traced.vectors or {
        f"{gate}/emphasis": torch.randn(held.router().probe(gate).shape) for gate in held.routed.gates
    }
    learned = srrc.calibrate(
        held.model, letters, TEXT, windows=4, length=LENGTH, neurons=True, progress=False, learned=vectors
    )
    assert {f"{gate}/emphasis" for gate in held.routed.gates} <= learned.vectors.keys()
    gated = GatedModel(held.model, held.call(held.tokens[: 2 * LENGTH].view(2, LENGTH)))
    gated.insert(learned.covers, learned.vectors)
    probes = Fixed({name.removesuffix("/emphasis"): vector for name, vector in vectors.items()})
    for gate in list(held.routed.gates)[:6]:
        agree(gated, held.arguments, gate, probes)
