from pathlib import Path
from typing import Any

import pytest
import torch

from srrc.errors import ProfileError
from srrc.profile import GateProfile
from srrc.relevance.calibrate import measure_gates
from srrc.relevance.information import Settings

SETTINGS = Settings(measured=(0.4, 0.7))


class StoppedError(Exception):
    pass


def run(small: Any, path: Path | None, stop: int | None = None, key: str = "k") -> dict[str, GateProfile]:
    count = 0

    def progress(gate_id: str) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise StoppedError

    batches = [small.arguments(seed) for seed in range(2)]
    return measure_gates(small.replay, batches, small.output, SETTINGS, key=key, path=path, progress=progress)


def same(one: dict[str, GateProfile], other: dict[str, GateProfile]) -> bool:
    fields = ("quantiles", "drift", "error", "kept_low")
    return one.keys() == other.keys() and all(
        torch.equal(getattr(one[n], f), getattr(other[n], f)) and one[n].scale == other[n].scale
        for n in one
        for f in fields
    )


@pytest.mark.parametrize("stop", [3, 14, 15, 18, 21, 22, 27])
def test_a_calibration_that_was_stopped_goes_on(small: Any, tmp_path: Path, stop: int) -> None:
    whole = run(small, None)
    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        run(small, path, stop)
    assert path.exists() == (stop > 14), "14 steps of looking come before the first of 14 interventions"
    calls: list[int] = []
    original = small.replay.finish
    small.replay.finish = lambda *args: calls.append(1) or original(*args)
    assert same(run(small, path), whole)
    # Two dense runs and two fractions for each intervention that was not done before.
    done = max(0, stop - 14)
    assert len(calls) == (2 if done <= 7 else 1) + 2 * (14 - done)
    assert not path.exists()


def test_the_state_of_another_calibration_is_not_used(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        run(small, path, 20, key="another")
    assert same(run(small, path), run(small, None))


@pytest.mark.parametrize("content", [b"", b"rubbish", bytes(1000)])
def test_a_damaged_state_is_not_used(small: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    assert same(run(small, path), run(small, None))


def test_a_state_that_cannot_be_written(small: Any, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot write"):
        run(small, tmp_path / "none" / "state")
