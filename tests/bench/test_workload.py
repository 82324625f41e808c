"""The tokens of a run: whole batches, and none of them twice."""

from collections import Counter

from srrc.bench.settings import Settings
from srrc.bench.workload import RANDOM, batches, make_workload
from srrc.models_zoo import families


def test_prompts_and_windows_come_in_whole_batches() -> None:
    settings = Settings("tiny", batch=3, prompts=2, new_tokens=8, prefill_length=4, heldout_tokens=25)
    workload = make_workload(families.tiny("llama").model, None, settings)
    assert [[len(prompt) for prompt in batch] for batch in workload.prompts] == [[4, 4, 4]] * 2
    windows = workload.windows[RANDOM]
    assert len(windows) == 6, "25 tokens of 8 a window are four windows, which are two batches"
    assert {len(window) for window in windows} == {settings.cache_length + 1}
    pieces = Counter([prompt for batch in workload.prompts for prompt in batch] + list(windows))
    assert max(pieces.values()) == 1


def test_batches() -> None:
    assert list(batches((1, 2, 3, 4), 2)) == [(1, 2), (3, 4)]
    assert list(batches((1, 2), 1)) == [(1,), (2,)]
