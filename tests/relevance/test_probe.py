"""The probe of a layer gate: it recovers what is linear, predicts what is not seen, and stays finite."""

import pytest
import torch
from torch import Tensor

from srrc.ops import layer_gate
from srrc.relevance.probe import ProbeFit

H = 16


def values(seed: int, truth: Tensor, rows: int = 400) -> dict[str, Tensor]:
    """A stream, and a branch whose size relative to it is exp(truth . x / rms(x) + noise)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, H, generator=generator) * (1 + torch.rand(2, rows, 1, generator=generator))
    noise = 0.1 * torch.randn(2, rows, 1, generator=generator)
    size = layer_gate.score(x, truth) * noise.exp()
    direction = torch.randn(2, rows, H, generator=generator)
    direction /= direction.norm(dim=-1, keepdim=True)
    return {"entry": x, "stream": x, "exit": direction * size * x.norm(dim=-1, keepdim=True)}


def fitted(order: tuple[str, ...], truth: Tensor) -> Tensor:
    fit = ProbeFit(H)
    for seed in range(4):
        found = values(seed, truth)
        for part in order:
            fit.see(part, found[part])
    return fit.probe()


@pytest.mark.parametrize("order", [("entry", "stream", "exit"), ("stream", "exit", "entry")])
def test_it_recovers_the_size_of_a_branch(order: tuple[str, ...]) -> None:
    truth = torch.cat(
        (0.3 * torch.randn(H, generator=torch.Generator().manual_seed(9)), torch.tensor([-1.0]))
    )
    probe = fitted(order, truth)
    assert probe.dtype == torch.float32
    torch.testing.assert_close(probe, truth, rtol=0, atol=0.04)
    unseen = values(99, truth)
    predicted = layer_gate.score(unseen["entry"], probe).flatten()
    true = (unseen["exit"].norm(dim=-1) / unseen["stream"].norm(dim=-1)).flatten()
    assert torch.corrcoef(torch.stack((predicted.log(), true.log())))[0, 1] > 0.95
    assert predicted.log().mean() == pytest.approx(float(true.log().mean()), abs=0.02)


def test_memory_does_not_grow_with_the_tokens_and_zeros_do_no_harm() -> None:
    fit = ProbeFit(H)
    for seed in range(3):
        found = values(seed, torch.zeros(H + 1))
        found["exit"][0, :5] = 0.0
        found["entry"][1, :5] = 0.0  # no direction
        for part in ("entry", "stream", "exit"):
            fit.see(part, found[part])
    assert fit.probe().isfinite().all()
    assert not fit._seen


def test_nothing_that_varies_gives_the_mean() -> None:
    fit = ProbeFit(H)
    x = torch.ones(1, 10, H)
    for part, value in (("entry", x), ("stream", x), ("exit", 0.5 * x)):
        fit.see(part, value)
    torch.testing.assert_close(layer_gate.score(x, fit.probe()), torch.full((1, 10, 1), 0.5))
