"""The GPU bench's whole model, on the CPU: what its checks run, and what one process leaves for the next."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srrc.bench.gpu import timing
from srrc.profile import Profile
from srrc.runtime.gates import OPEN

pytest.importorskip("triton", reason="Triton is made for Linux alone")
from srrc.bench.gpu import compiled_model
from srrc.bench.gpu.decode import Shape
from srrc.bench.gpu.llama import Decoder

TINY = Shape(layers=1, hidden=128, heads=4, kv_heads=2, head=32, neurons=256, vocabulary=512, positions=16)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def token(model: Any, number: int = 0) -> tuple[Tensor, Tensor]:
        return torch.full((1, 1), number), torch.full((1,), model.shape.positions - 1)

    monkeypatch.setattr(compiled_model, "SMALL", TINY)
    monkeypatch.setattr(compiled_model, "_token", token)
    monkeypatch.setattr(compiled_model, "_handed", lambda: iter(()))
    monkeypatch.setattr(nn.Module, "to", lambda module, *given: module)
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("on_cpu")
def test_a_head_that_is_at_work_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    told, routed, heads = compiled_model._told, compiled_model._routed, []

    def left_open(*given: Any, **options: Any) -> Any:
        """As a plan for a card leaves it."""
        run, gates = routed(*given, **options)
        [head] = [gate for gate in gates if gate.id.startswith("vocab:")]
        head.record.copy_(torch.tensor(OPEN))
        return run, gates

    def watched(run: Any, model: Any, gates: list[Any]) -> tuple[Tensor, Tensor]:
        found = told(run, model, gates)
        heads.extend(gate for gate in gates if gate.id.startswith("vocab:"))
        assert float(heads[-1].record[0]) >= 0
        offered, executed = heads[-1].counters[:2].tolist()
        assert 0 < executed < 0.9 * offered
        return found

    monkeypatch.setattr(compiled_model, "_routed", left_open)
    monkeypatch.setattr(compiled_model, "_told", watched)
    assert all(check.passed for check in compiled_model.checks())
    assert len(heads) == 6


def test_skipped_without_safetensors() -> None:
    body = """
    import sys
    sys.modules["safetensors"] = None
    from srrc.bench.gpu import child
    child.walk("compiled_model", lambda kind, what: print(kind, what), measure=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "skipped profiles need safetensors, which is not installed\n", ran.stderr


def test_calibrated_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.MODE, "kept", tmp_path)
    model, first = compiled_model._models(TINY, neurons=False, texts=1, length=4)
    monkeypatch.setattr("srrc.calibration.calibrate", None)
    again, kept = compiled_model._models(TINY, neurons=False, texts=1, length=4)
    assert isinstance(kept, Profile)
    assert kept.digest() == first.digest()
    kept.check(dict(again.named_parameters()))
    assert all(map(torch.equal, model.buffers(), again.buffers()))


def test_a_model_writes_to_the_caches_that_it_is_handed() -> None:
    """And not to its own, which is what makes them a request's; by one graph, wherever they lie."""
    torch.manual_seed(0)
    small = Shape(layers=2, hidden=32, heads=2, kv_heads=1, head=16, neurons=64, vocabulary=64, positions=8)
    model, graphs = compiled_model.Handed(Decoder(small)), []
    run = torch.compile(model, backend=lambda gm, inputs: graphs.append(gm) or gm)
    own = [cache.clone() for cache in model.model.buffers()]
    token = torch.tensor([[5]]), torch.tensor([7])
    with torch.no_grad():
        for aligned in (True, False):
            caches = model.caches(aligned=aligned)
            before = [cache.clone() for cache in caches]
            twins = [cache.clone() for cache in caches]
            torch.testing.assert_close(run(*token, *caches), model(*token, *twins))
            for cache, twin, old in zip(caches, twins, before, strict=True):
                torch.testing.assert_close(cache, twin)
                assert torch.equal(cache[:, :, :7], old[:, :, :7])
                assert not torch.equal(cache[:, :, 7], old[:, :, 7])
            assert all((cache.data_ptr() % 16 == 0) == aligned for cache in caches)
    assert all(map(torch.equal, own, model.model.buffers()))
    assert len(graphs) == 1
