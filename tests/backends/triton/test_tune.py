"""Launch configurations are measured once and kept for each card; whatever lies there, a configuration comes of it.

No card is needed: times are given, and the cards' names.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton

from srrc.backends.triton import alone, tune
from srrc.paths import CACHE_VARIABLE


@dataclass(frozen=True)
class Cut:
    block: int
    num_warps: int = 4
    dot: bool = True


SPACE = (Cut(16), Cut(32), Cut(64, 8), Cut(64, 8, dot=False))
DEFAULT = Cut(16)
KEY = tune.key("kernel", rows=1, dtype=torch.bfloat16)
FIRST, SECOND, TWIN = (torch.device("cuda", index) for index in range(3))
NAMES = ("NVIDIA H100 80GB HBM3", "NVIDIA A100/SXM4", "NVIDIA H100 80GB HBM3")
FILE = f"nvidia-h100-80gb-hbm3-9.0-triton-{triton.__version__.replace('+', '-')}.json"


@dataclass
class Clock:
    """Times by configuration, in turn and then the last again; an exception is raised. Records what was measured."""

    times: dict[Cut, list[float | Exception]]
    measured: list[Cut] = field(default_factory=list)

    def run(self, config: Cut) -> Callable[[], Cut]:
        return lambda: config

    def time(self, call: Callable[[], object]) -> float:
        config = call()
        assert isinstance(config, Cut)
        took = self.times[config][min(self.measured.count(config), len(self.times[config]) - 1)]
        self.measured.append(config)
        if isinstance(took, Exception):
            raise took
        return took


def clock(*times: float | Exception) -> Clock:
    return Clock({config: [took] for config, took in zip(SPACE, times, strict=True)})


def tuned(
    by: Clock, device: torch.device = FIRST, kernel_key: str = KEY, space: tuple[Cut, ...] = SPACE
) -> Cut:
    return tune.tune(kernel_key, space, DEFAULT, device, by.run, timer=by.time)


def found(device: torch.device = FIRST, kernel_key: str = KEY, space: tuple[Cut, ...] = SPACE) -> Cut:
    return tune.lookup(kernel_key, space, DEFAULT, device)


def kept(folder: Path) -> list[str]:
    """The files but the locks, which hold nothing."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock" or path.stat().st_size]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the files lie, with nothing in it and nothing known; the cards have names."""

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name=NAMES[device.index], major=9, minor=0)

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(tune, "_cards", {})
    return tmp_path / "cache" / "triton"


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`another_process()`: from here on nothing is known but what the files say."""
    return lambda: monkeypatch.setattr(tune, "_cards", {})


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, "srrc.cache"):
        yield lambda: [r.message for r in caplog.records if r.levelno >= logging.WARNING]


def test_key_names_the_kernel_and_its_facts_in_order() -> None:
    made = tune.key("sparse_linear", rows=1, inputs=4096, dtype=torch.bfloat16, bias=False)
    assert made == "sparse_linear rows=1 inputs=4096 dtype=bfloat16 bias=False"


def test_nothing_known_is_the_default_and_no_file(folder: Path) -> None:
    assert found() == DEFAULT
    assert not folder.exists()


def test_the_quickest_is_chosen_and_recorded(folder: Path) -> None:
    assert tuned(clock(3.0, 2.0, 1.0, 4.0)) == SPACE[2]
    assert found() == SPACE[2]
    record = json.loads((folder / FILE).read_text())[KEY]
    assert record == {
        "config": asdict(SPACE[2]),
        "milliseconds": 1.0,
        "of": {
            "block=16 num_warps=4 dot=True": 3.0,
            "block=32 num_warps=4 dot=True": 2.0,
            "block=64 num_warps=8 dot=True": 1.0,
            "block=64 num_warps=8 dot=False": 4.0,
        },
    }
    assert kept(folder) == [FILE]


def test_another_process_reads_it_and_measures_nothing(another_process: Callable[[], None]) -> None:
    tuned(clock(3.0, 2.0, 1.0, 4.0))
    another_process()
    assert found() == SPACE[2]
    later = clock(1.0, 2.0, 3.0, 4.0)
    assert tuned(later) == SPACE[2]
    assert later.measured == []


def test_configurations_take_turns() -> None:
    by = clock(1.0, 2.0, 3.0, 4.0)
    tuned(by)
    assert by.measured == list(SPACE) * (1 + tune.ROUNDS)


def test_the_first_round_and_what_disturbs_one_do_not_count() -> None:
    slow_at_first = [900.0, 1.0, 1.0, 700.0, 1.0, 1.0]
    by = Clock({SPACE[0]: [2.0], SPACE[1]: [2.0], SPACE[2]: [*slow_at_first], SPACE[3]: [0.1, 3.0]})
    assert tuned(by) == SPACE[2]


def test_of_equals_the_first_is_chosen() -> None:
    assert tuned(clock(3.0, 1.0, 1.0, 1.0)) == SPACE[1]


def test_what_raises_is_left_out_and_not_tried_again(
    folder: Path, another_process: Callable[[], None]
) -> None:
    by = Clock(
        {
            SPACE[0]: [3.0],
            SPACE[1]: [RuntimeError("shared memory")],
            SPACE[2]: [0.5, ValueError()],
            SPACE[3]: [2.0],
        }
    )
    assert tuned(by) == SPACE[3]
    assert by.measured.count(SPACE[1]) == 1
    assert by.measured.count(SPACE[2]) == 2
    assert [*json.loads((folder / FILE).read_text())[KEY]["of"].values()] == [3.0, None, None, 2.0]
    another_process()
    later = clock(1.0, 1.0, 1.0, 1.0)
    assert tuned(later) == SPACE[3]
    assert later.measured == []


@pytest.mark.parametrize("error", [RuntimeError("Triton Error [CUDA]: out of memory"), MemoryError()])
def test_what_found_the_card_full_is_tried_again(
    error: Exception, folder: Path, another_process: Callable[[], None]
) -> None:
    by = Clock({SPACE[0]: [3.0], SPACE[1]: [error], SPACE[2]: [ValueError("never")], SPACE[3]: [2.0]})
    assert tuned(by) == SPACE[3]
    assert [*json.loads((folder / FILE).read_text())[KEY]["of"].values()] == [3.0, None, 2.0]
    assert found() == SPACE[3]
    another_process()
    assert tuned(clock(3.0, 1.0, 4.0, 2.0)) == SPACE[1]
    assert [*json.loads((folder / FILE).read_text())[KEY]["of"].values()] == [3.0, 1.0, 4.0, 2.0]


def test_what_was_raised_is_handed_on() -> None:
    failed: list[Exception] = []
    by = clock(3.0, ValueError("first"), 2.0, RuntimeError("last"))
    assert tune.tune(KEY, SPACE, DEFAULT, FIRST, by.run, timer=by.time, failed=failed) == SPACE[2]
    assert [*map(str, failed)] == ["first", "last"]


def test_what_cannot_be_prepared_is_left_out() -> None:
    by = clock(3.0, 1.0, 2.0, 4.0)

    def run(config: Cut) -> Callable[[], Cut]:
        if config == SPACE[1]:
            raise MemoryError
        return by.run(config)

    assert tune.tune(KEY, SPACE, DEFAULT, FIRST, run, timer=by.time) == SPACE[2]


def test_where_all_raise_the_default_stays(folder: Path, warnings: Callable[[], list[str]]) -> None:
    assert tuned(clock(*[RuntimeError()] * 4)) == DEFAULT
    assert len(warnings()) == 1
    assert kept(folder) == []
    assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == SPACE[1]  # next time it may be otherwise


ENTRY = {"config": asdict(SPACE[2]), "milliseconds": 1.0, "of": {}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b'{"kernel',
        b"[" * 100_000,
        b"[1, 2]",
        b"7",
        b"null",
        json.dumps({KEY: 1}).encode(),
        json.dumps({KEY: [asdict(SPACE[2])]}).encode(),
        json.dumps({KEY: {"config": asdict(SPACE[2])}}).encode(),
        json.dumps({KEY: ENTRY | {"config": 3}}).encode(),
        json.dumps({KEY: ENTRY | {"milliseconds": "quick"}}).encode(),
        json.dumps({KEY: ENTRY | {"of": [1.0]}}).encode(),
    ],
    ids=lambda content: content[:24].decode("latin1"),
)
def test_a_file_of_something_else_is_ignored_and_replaced(
    content: bytes, folder: Path, another_process: Callable[[], None], warnings: Callable[[], list[str]]
) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(content)
    assert found() == DEFAULT
    assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == SPACE[1]
    assert len(warnings()) == 1
    assert FILE in warnings()[0]
    another_process()
    assert found() == SPACE[1]


def test_where_nothing_can_be_written_the_choice_is_the_process_s(
    tmp_path: Path, another_process: Callable[[], None], warnings: Callable[[], list[str]]
) -> None:
    (tmp_path / "cache").write_text("no folder")
    other = tune.key("other")
    assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == SPACE[1]
    assert tuned(clock(3.0, 2.0, 1.0, 4.0), kernel_key=other) == SPACE[2]
    assert len(warnings()) == 1
    assert found() == SPACE[1]
    assert found(kernel_key=other) == SPACE[2]
    another_process()
    assert found() == DEFAULT


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(
    folder: Path, warnings: Callable[[], list[str]]
) -> None:
    (folder / FILE / "inside").mkdir(parents=True)
    assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == found() == SPACE[1]
    assert len(warnings()) == 2  # neither read nor written
    assert kept(folder) == [FILE]


def test_a_choice_that_the_space_lacks_is_the_default_until_measured_again() -> None:
    tuned(clock(3.0, 2.0, 1.0, 4.0))
    smaller = SPACE[:2]
    assert found(space=smaller) == DEFAULT
    assert tuned(clock(3.0, 2.0, 1.0, 4.0), space=smaller) == SPACE[1]
    assert found(space=smaller) == SPACE[1]


def test_a_space_that_has_grown_is_measured_again() -> None:
    tuned(clock(3.0, 2.0, 1.0, 4.0), space=SPACE[:2])
    assert found() == SPACE[1]
    assert tuned(clock(3.0, 2.0, 1.0, 4.0)) == SPACE[2]


def test_cards_do_not_mix_but_those_of_a_kind_share(
    folder: Path, another_process: Callable[[], None]
) -> None:
    tuned(clock(3.0, 1.0, 2.0, 4.0), FIRST)
    assert found(SECOND) == DEFAULT
    tuned(clock(3.0, 2.0, 1.0, 4.0), SECOND)
    another_process()
    assert [found(each) for each in (FIRST, SECOND, TWIN)] == [SPACE[1], SPACE[2], SPACE[1]]
    assert len(kept(folder)) == 2


def test_another_triton_measures_anew(
    monkeypatch: pytest.MonkeyPatch, folder: Path, another_process: Callable[[], None]
) -> None:
    tuned(clock(3.0, 1.0, 2.0, 4.0))
    another_process()
    monkeypatch.setattr(triton, "__version__", "99.0.0+git/1")
    assert found() == DEFAULT
    tuned(clock(3.0, 2.0, 1.0, 4.0))
    assert (folder / "nvidia-h100-80gb-hbm3-9.0-triton-99.0.0-git-1.json").exists()


def test_what_another_process_wrote_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch, another_process: Callable[[], None]
) -> None:
    ours, theirs = tune.key("ours"), tune.key("theirs")
    assert found(kernel_key=ours) == DEFAULT  # the file is read, and is none
    known = tune._cards
    another_process()
    tuned(clock(3.0, 1.0, 2.0, 4.0), kernel_key=theirs)
    monkeypatch.setattr(tune, "_cards", known)
    tuned(clock(3.0, 2.0, 1.0, 4.0), kernel_key=ours)
    another_process()
    assert found(kernel_key=theirs) == SPACE[1]
    assert found(kernel_key=ours) == SPACE[2]


@pytest.mark.parametrize("error", [None, RuntimeError(), AssertionError("no CUDA"), AttributeError("name")])
def test_a_card_that_cannot_be_asked_has_the_default(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def properties(device: torch.device) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    by = clock(3.0, 1.0, 2.0, 4.0)
    assert tuned(by) == found() == DEFAULT
    assert tuned(by, torch.device("cpu")) == found(torch.device("cpu")) == DEFAULT
    assert by.measured == []


def test_looked_up_in_an_op_that_is_traced() -> None:
    tuned(clock(3.0, 1.0, 2.0, 4.0))
    seen = []
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, 8, dtype=torch.bfloat16)
        seen.append(found(kernel_key=tune.key("kernel", rows=x.shape[0], dtype=x.dtype)))
    assert seen == [SPACE[1]]


def test_a_symbolic_size_finds_no_record_and_is_not_guarded_on() -> None:
    shapes = torch.fx.experimental.symbolic_shapes.ShapeEnv()
    with torch._subclasses.FakeTensorMode(shape_env=shapes) as mode:
        x = mode.from_tensor(torch.empty(5, 8), static_shapes=False)
        assert found(kernel_key=tune.key("kernel", rows=x.shape[0])) == DEFAULT
    assert shapes.guards == []


def test_threads_measure_a_kernel_once_and_lose_no_record(
    folder: Path, another_process: Callable[[], None]
) -> None:
    keys = [tune.key("kernel", inputs=inputs) for inputs in range(6)]
    clocks = {each: clock(3.0, 1.0, 2.0, 4.0) for each in keys}
    together = threading.Barrier(12)

    def work(at: int) -> Cut:
        together.wait()
        found(kernel_key=keys[at % 6])
        return tuned(clocks[keys[at % 6]], kernel_key=keys[at % 6])

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(work, range(12))) == {SPACE[1]}
    assert {len(by.measured) for by in clocks.values()} == {len(SPACE) * (1 + tune.ROUNDS)}
    assert sorted(json.loads((folder / FILE).read_text())) == sorted(keys)
    another_process()
    assert {found(kernel_key=each) for each in keys} == {SPACE[1]}


def test_looking_up_does_not_wait_for_a_measurement() -> None:
    by = clock(3.0, 1.0, 2.0, 4.0)

    def time(call: Callable[[], object]) -> float:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(found).result(timeout=20) == DEFAULT
        return by.time(call)

    assert tune.tune(KEY, SPACE, DEFAULT, FIRST, by.run, timer=time) == SPACE[1]


def test_while_another_process_measures_one_waits_and_reads_what_it_found(
    folder: Path, another_process: Callable[[], None]
) -> None:
    tuned(clock(3.0, 1.0, 2.0, 4.0))
    written = (folder / FILE).read_text()
    (folder / FILE).unlink()
    another_process()
    by = clock(1.0, 2.0, 3.0, 4.0)
    with ThreadPoolExecutor(1) as pool:
        with locked(folder):
            later = pool.submit(tuned, by)
            time.sleep(0.3)
            assert not later.done()
            (folder / FILE).write_text(written)
        assert later.result(timeout=20) == SPACE[1]
    assert by.measured == []


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    with locked(folder):
        assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == SPACE[1]


def test_without_locks_one_measures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "fcntl", None)
    assert tuned(clock(3.0, 1.0, 2.0, 4.0)) == SPACE[1]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The lock is another's: locks of a file that is opened twice are two."""
    with (folder / FILE).with_suffix(".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield
