"""What of the GPU bench needs no GPU: how results are judged and told."""

import importlib.util
import math
import pkgutil
from pathlib import Path

import pytest
import torch

from srrc.bench import gpu
from srrc.bench.gpu import record, timing
from srrc.bench.gpu.cases import CASES
from srrc.bench.gpu.record import Ceilings, Check, Measurement


def test_a_check_compares_with_the_dtype_s_own_tolerance() -> None:
    truth = torch.ones(100, dtype=torch.float64)
    assert record.check("k", "c", truth.float() * (1 + 1e-6), truth).passed
    assert not record.check("k", "c", truth.float() * (1 + 1e-4), truth).passed
    assert record.check("k", "c", truth.bfloat16() * (1 + 1e-3), truth).passed
    assert not record.check("k", "c", truth.half() * (1 + 1e-2), truth).passed


def test_rounding_passes() -> None:
    torch.manual_seed(0)
    truth = torch.randn(200, 4096, dtype=torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        noisy = truth * (1 + 2 * torch.finfo(dtype).eps * torch.rand_like(truth))
        assert record.check("k", "c", noisy.to(dtype), truth).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_row_or_one_value_of_many_that_is_wrong_does_not_pass(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    truth = torch.randn(2, 8, 1024, 64).to(dtype)
    assert record.check("k", "c", truth.clone(), truth).passed
    row = truth.clone()
    row[1, 5, 1023] = 0
    assert not record.check("k", "c", row, truth).passed
    value = truth.clone()
    value[0, 0, 7, 63] += 0.1
    assert not record.check("k", "c", value, truth).passed
    small = truth * torch.logspace(0, -4, 1024, dtype=dtype)[:, None]  # each row by its own size
    row = small.clone()
    row[1, 5, 1023] = 0
    assert not record.check("k", "c", row, small).passed


def test_nan_never_passes_and_equal_infinities_do() -> None:
    found = record.check("k", "c", torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert math.isnan(found.error)
    assert not found.passed
    assert found.as_dict()["error"] is None
    assert not Check("k", "c", math.nan, 1.0).passed
    infinite = torch.tensor([1.0, float("-inf")])
    assert record.check("k", "c", infinite, infinite).passed
    assert not record.check("k", "c", torch.ones(2), infinite).passed
    assert not record.check("k", "c", infinite, torch.ones(2)).passed


def test_zeros_pass_as_zeros_alone() -> None:
    assert record.check("k", "c", torch.zeros(3, 4), torch.zeros(3, 4)).passed
    assert not record.check("k", "c", torch.full((3, 4), 1e-3), torch.zeros(3, 4)).passed


def test_shapes_that_differ_never_pass() -> None:
    assert not record.check("k", "c", torch.ones(1, 4), torch.ones(3, 4)).passed
    assert not record.exact("k", "c", (torch.ones(1, 4), torch.ones(3, 4))).passed


def test_integers_and_what_is_moved_are_the_same_or_wrong() -> None:
    index = torch.arange(8 * 32768, dtype=torch.int32).view(8, 32768)
    wrong = index.clone()
    wrong[3, 7] += 1
    assert record.exact("k", "c", (index.clone(), index)).passed
    assert record.exact("k", "c", (index, index), (wrong, index)).error == 1.0
    assert not record.exact("k", "c", (index, index), (wrong, index)).passed
    moved = torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16)
    assert record.exact("k", "c", (moved.clone(), moved)).passed
    assert not record.exact("k", "c", (moved.nan_to_num(0.0), moved)).passed


def test_the_nearer_ceiling_counts() -> None:
    limits = Ceilings(bandwidth=1e12, compute=1e14)
    assert Measurement("k", "c", 2.0, bytes=1e9, flops=1e10).of_ceiling(limits) == pytest.approx(0.5)
    assert Measurement("k", "c", 2.0, bytes=1e9, flops=1.5e11).of_ceiling(limits) == pytest.approx(0.75)
    assert Measurement("k", "c", 2.0, bytes=1e9).as_dict(None)["of_ceiling"] is None


def test_calls_in_turn_read_more_than_a_cache_holds() -> None:
    one = torch.zeros(1 << 10, dtype=torch.int8)
    beyond = 100 << 10
    assert len(timing.copies(one, beyond=beyond)) == 100
    assert len(timing.copies(one, read=0.25, beyond=beyond)) == 400
    assert len(timing.copies(one, one, read=0.25, beyond=beyond)) == 200
    assert len(timing.copies(one, beyond=10 << 20)) == timing.MOST_SETS
    assert len(timing.copies(one, beyond=1)) == 1


def test_copies_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST_BYTES", 10 << 10)
    assert len(timing.copies(torch.zeros(1 << 10, dtype=torch.int8), beyond=100 << 10)) == 10


def test_configurations_that_do_not_run_are_left_out() -> None:
    def time(config: int) -> float:
        if config % 2:
            raise RuntimeError(f"{config} needs too much shared memory")
        return float(-config)

    assert [*timing.quickest(range(5), time)] == [4, 2, 0]
    with pytest.raises(RuntimeError, match="3 needs"):
        timing.quickest((1, 3), time)


def test_the_card_sleeps_until_all_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []

    def between(run: timing.Call, asleep: int) -> tuple[float, bool]:
        slept.append(asleep)
        run()
        return 5.0 if asleep > 4 * timing.ASLEEP else 9.0, asleep > 4 * timing.ASLEEP

    monkeypatch.setattr(timing, "_between_events", between)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing.queued_milliseconds(lambda: None, calls=5) == 1.0
    assert slept[:4] == [timing.ASLEEP, 2 * timing.ASLEEP, 4 * timing.ASLEEP, 8 * timing.ASLEEP]
    assert len(slept) == 3 + timing.REPLAYS


def test_what_waits_for_the_card_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_between_events", lambda run, asleep: (7.0, False))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing.queued_milliseconds(lambda: None, calls=1) == 7.0


def test_every_case_is_listed() -> None:
    pytest.importorskip("triton")
    found = set()
    for module in pkgutil.iter_modules(gpu.__path__):
        spec = importlib.util.find_spec(f"{gpu.__name__}.{module.name}")
        assert spec is not None
        assert spec.origin is not None
        if "\ndef checks(" in Path(spec.origin).read_text(encoding="utf-8"):
            found.add(module.name)
    assert found == {*CASES, "ceilings"}
