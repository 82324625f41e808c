"""Batches, distillation, states on disk, logs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from srrc.errors import OptionError, ProfileError
from srrc.training import state
from srrc.training.batches import Batches, tokenised
from srrc.training.distillation import distil
from srrc.training.log import logging
from srrc.training.state import State


def test_a_batch_is_the_same_in_every_run_and_unlike_its_neighbours() -> None:
    batches = Batches({"a": torch.arange(100), "b": torch.arange(1000, 1050)}, rows=3, length=8, seed=1)
    again = Batches({"a": torch.arange(100), "b": torch.arange(1000, 1050)}, rows=3, length=8, seed=1)
    assert torch.equal(batches(5), again(5))
    assert batches(0).shape == (3, 8)
    assert not torch.equal(batches(0), batches(1))
    assert not torch.equal(batches(0), batches(0, worker=1))
    drawn = torch.cat([batches(number) for number in range(50)])
    assert torch.equal(drawn, drawn[:, :1] + torch.arange(8))  # windows of a text, in order
    assert (
        0.3 < float((drawn[:, 0] >= 1000).float().mean()) < 0.7
    )  # each domain as likely, whatever its length


def test_too_little_text_is_refused(letters: Any) -> None:
    with pytest.raises(OptionError, match="poems has 3 tokens, fewer than one window of 8"):
        tokenised(letters, {"poems": ["abc"]}, 1, 8)
    with pytest.raises(OptionError, match="no text"):
        tokenised(letters, {}, 1, 8)
    assert tokenised(letters, {"poems": ["abcdefgh", "ij"]}, 1, 8).count == 10


def test_the_digest_tells_texts_apart(letters: Any) -> None:
    one, other = (tokenised(letters, {"a": [text * 9]}, 1, 8).digest for text in ("ab", "ac"))
    assert one != other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distillation_is_the_divergence_and_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    teacher = 3 * torch.randn(300, 7, dtype=dtype)
    student = torch.randn(300, 7, dtype=dtype, requires_grad=True)
    loss = distil(student, teacher)
    expected = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(loss, expected.float())
    (2 * loss).backward()
    (wanted,) = torch.autograd.grad(2 * expected, student)
    torch.testing.assert_close(student.grad, wanted, atol=1e-6, rtol=1e-4)


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    parameters = {"a": torch.randn(3, requires_grad=True), "b": torch.randn(2, 2, requires_grad=True)}

    def step(optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        sum((p**3).sum() for p in parameters.values()).backward()  # type: ignore[union-attr]
        optimiser.step()

    first = torch.optim.Adam(list(parameters.values()), lr=0.1)
    for _ in range(3):
        step(first)
    held = State("key", 3, dict(parameters), state.keep_moments(first, parameters), [{"kl": 0.5}])
    state.save(held, tmp_path / "state.safetensors")
    step(first)
    ahead = {name: p.detach().clone() for name, p in parameters.items()}

    loaded = state.load(tmp_path / "state.safetensors", "key")
    assert loaded is not None
    assert (loaded.step, loaded.history) == (3, [{"kl": 0.5}])
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(loaded.tensors[name])
    second = torch.optim.Adam(list(parameters.values()), lr=0.1)
    state.restore_moments(second, parameters, loaded.moments, loaded.step)
    step(second)
    for name, p in parameters.items():
        assert torch.equal(p, ahead[name])


def test_another_trainings_state_is_none_and_a_broken_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert state.load(path, "key") is None
    state.save(State("key"), path)
    assert state.load(path, "other") is None
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ProfileError, match="truncated or damaged"):
        state.load(path, "key")


def test_a_log_goes_on_after_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    with logging(tmp_path, "router", 4, 0, show=False) as log:
        for number in (1, 2, 3):
            log(number, {"kl": number / 10})
    with logging(tmp_path, "router", 4, 2, show=False) as log:  # step 3 was not kept in the state
        log(3, {"kl": 0.9})
    lines = [json.loads(line) for line in (tmp_path / "router.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kl"]) for line in lines] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert list((tmp_path / "tensorboard" / "router").glob("events*"))
