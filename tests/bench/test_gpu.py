"""What of the GPU bench needs no GPU: how results are judged and told."""

import math

import pytest
import torch

from srrc.bench.gpu import record
from srrc.bench.gpu.record import Ceilings, Check, Measurement


def test_a_check_compares_with_the_dtype_s_own_tolerance() -> None:
    truth = torch.ones(100, dtype=torch.float64)
    assert record.check("k", "c", truth.float() * (1 + 1e-6), truth).passed
    assert not record.check("k", "c", truth.float() * (1 + 1e-4), truth).passed
    assert record.check("k", "c", truth.bfloat16() * (1 + 1e-3), truth).passed


def test_nan_never_passes() -> None:
    found = record.check("k", "c", torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert math.isnan(found.error)
    assert not found.passed
    assert not Check("k", "c", math.nan, 1.0).passed


def test_the_nearer_ceiling_counts() -> None:
    limits = Ceilings(bandwidth=1e12, compute=1e14)
    assert Measurement("k", "c", 2.0, bytes=1e9, flops=1e10).of_ceiling(limits) == pytest.approx(0.5)
    assert Measurement("k", "c", 2.0, bytes=1e9, flops=1.5e11).of_ceiling(limits) == pytest.approx(0.75)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = pytest.importorskip("srrc.bench.gpu.__main__").main
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().out
