"""Processes that answer, that refuse, and that die: the others go on."""

import os
import signal
from pathlib import Path

import pytest

from srrc.bench import lineup as module
from srrc.bench.lineup import Lineup


@pytest.fixture
def lineup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lineup:
    """Two workers that have loaded nothing."""
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    return Lineup(["one", "two"], tmp_path, 1, cold=False)


def test_a_refusal_is_one_line_and_the_other_worker_answers(lineup: Lineup) -> None:
    with lineup:
        wrong = {"model": "smollm2-135", "dtype": "float32", "threads": 1, "cache_length": 8}
        assert lineup.ask("one", "load", **wrong) is None
        assert "did you mean 'smollm2-135m'" in lineup.failed["one"]
        assert lineup.ask("two", "nonsense") is None  # an answer all the same, not a dead process
        assert lineup.failed["two"].startswith("AttributeError")
        assert lineup.names == []


def test_a_worker_that_dies_is_named_by_its_signal(lineup: Lineup) -> None:
    with lineup:
        os.kill(lineup._workers["one"]._process.pid, signal.SIGKILL)
        assert set(lineup.ask_all("finish")) == set()
        assert lineup.failed["one"] == "the process died (signal 9)"
        assert lineup.ask("one", "finish") is None


def test_leaving_ends_every_process(lineup: Lineup) -> None:
    with lineup:
        processes = [worker._process for worker in lineup._workers.values()]
    assert [process.poll() for process in processes] == [0, 0]
