"""Huge pages under weights that are there already."""

import sys
from pathlib import Path

import pytest
import torch

from srrc.backends.cpu import memory


def huge_bytes() -> int:
    with Path("/proc/self/smaps_rollup").open() as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("AnonHugePages"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_weights_keep_their_values_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(memory.SWITCH, raising=False)
    weights = [torch.randn(1000, 1100) for _ in range(4)]
    before = [(w.clone(), w.data_ptr()) for w in weights]
    at_first = huge_bytes()
    done = memory.use_huge_pages(weights)
    assert all(
        torch.equal(w, old) and w.data_ptr() == place for w, (old, place) in zip(weights, before, strict=True)
    )
    if done == 0:
        pytest.skip("this system gives no huge pages")
    assert done % memory.HUGE == 0
    assert huge_bytes() >= at_first
    assert huge_bytes() >= done


def test_nothing_is_asked_for_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.SWITCH, "0")
    assert memory.use_huge_pages([torch.randn(1000, 1100)]) == 0


def test_small_and_empty_tensors_are_left_alone() -> None:
    assert memory.use_huge_pages([torch.empty(0), torch.empty(2, device="meta")]) == 0
    assert memory.use_huge_pages([]) == 0
