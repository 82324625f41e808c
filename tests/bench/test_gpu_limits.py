"""The GPU bench's time, and what would go unseen: threads of processes at once, a run's end, baselines that fail."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srrc.bench.gpu import __main__ as bench
from srrc.bench.gpu import children, report
from srrc.bench.gpu.baselines import NOTE, Baselines
from srrc.bench.gpu.cases import LIMITS
from srrc.bench.gpu.record import Check, Measurement

pytest.importorskip("triton", reason="Triton is made for Linux alone")
from srrc.bench.gpu import block_attention


def python(body: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(body), *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_processes_that_warm_at_once_have_a_thread_each(tmp_path: Path) -> None:
    body = """
    import sys, types
    from pathlib import Path
    import torch
    from srrc.bench.gpu import child
    from srrc.bench.gpu.record import Check
    def checks():
        yield Check("fake", "threads", float(torch.get_num_threads()), 1.0)
    sys.modules["srrc.bench.gpu.fake"] = types.SimpleNamespace(checks=checks)
    torch.set_num_threads(3)
    child.run("fake", Path(sys.argv[1]), warming=sys.argv[2] == "warm", measure=False)
    """
    for how, threads in (("warm", 1.0), ("run", 3.0)):
        found = tmp_path / f"{how}.jsonl"
        python(body, str(found), how)
        told = json.loads(found.read_text().splitlines()[0])
        assert told["what"]["error"] == threads


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What each case's process runs instead, for a card that is not there."""
    path = tmp_path / "child.py"
    monkeypatch.setattr(children, "COMMAND", (sys.executable, str(path)))
    monkeypatch.setattr(bench, "_cannot_run", lambda: None)
    monkeypatch.setattr(bench, "_about", dict)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    yield path
    for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


def write(path: Path, body: str) -> None:
    head = """
    import json, sys, time
    NAME, INTO = sys.argv[2], sys.argv[4]
    def done():
        with open(INTO, "a") as file:
            file.write(json.dumps({"kind": "done", "what": None}) + chr(10))
    """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))


def test_a_run_ends_in_time(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second of three hangs, is killed when the run's time is over, and the third is not begun."""
    out = tmp_path / "found.json"
    write(cases, "time.sleep(60 if NAME == 'listed_rows' else 0); done()")
    began = time.monotonic()
    given = ["--only", "decode", "--only", "listed_rows", "--only", "compact", "--checks", "--json", str(out)]
    assert bench.main([*given, "--total", "8"]) == 1
    assert time.monotonic() - began < 20
    found = json.loads(out.read_text())
    assert found["skipped"] == {"compact": "no time"}
    assert found["broken"].keys() == {"listed_rows"}
    assert "skipped compact: no time" in capsys.readouterr().out
    write(cases, "done()")
    assert bench.main([*given, "--total", "4"]) == 0
    said = capsys.readouterr().out
    assert "0 checks, 0 wrong; 0 broken, 3 skipped" in said
    assert json.loads(out.read_text())["skipped"].keys() == {"decode", "listed_rows", "compact"}


@pytest.mark.parametrize(
    ("given", "limit"), [([], 300.0), (["--limit", "90"], 90.0), (["--total", "200"], 200.0)]
)
def test_calibrating_has_a_longer_limit(
    cases: Path, given: list[str], limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def lines(self: children.Child, limit: float) -> Iterator[dict[str, Any]]:
        limits.append(limit)
        self.close()
        return iter(())

    write(cases, "done()")
    monkeypatch.setattr(children.Child, "lines", lines)
    assert bench.main(["--only", "compiled_model", "--checks", *given]) == 0
    assert limits == [pytest.approx(limit, abs=5.0)]
    assert LIMITS == {"compiled_model": 300.0}


def test_what_a_case_warned_of_is_kept(cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    write(cases, "print('UserWarning: slow' if NAME == 'decode' else 'well', flush=True); done()")
    assert bench.main(["--only", "decode", "--only", "compact", "--checks", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["warned"] == {"decode": "UserWarning: slow\n"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_ends_its_case(tmp_path: Path, number: int) -> None:
    body = """
    import signal, sys
    from srrc.bench.gpu import __main__ as bench, children
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
    children.COMMAND = (sys.executable, "-c",
        "import os, sys, time; open(sys.argv[4] + '.pid', 'w').write(str(os.getpid())); time.sleep(60)")
    bench._cannot_run, bench._about = lambda: None, dict
    bench.tempfile.tempdir = sys.argv[1]
    bench.main(["--only", "compact", "--checks"])
    """
    command = [sys.executable, "-c", textwrap.dedent(body), str(tmp_path)]
    with subprocess.Popen(command) as run:
        until = time.monotonic() + 60
        while not (written := [each for each in tmp_path.rglob("*.pid") if each.read_text()]):
            assert time.monotonic() < until
            time.sleep(0.05)
        case = int(written[0].read_text())
        run.send_signal(number)
        assert run.wait(30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(case, 0)


def test_a_baseline_that_cannot_be_had_is_told() -> None:
    def fails() -> float:
        raise RuntimeError("no such kernel\n" + NOTE * "x")

    others = Baselines()
    others.time("quick", lambda: 2.0)
    more = others.also()
    more.time("flash", fails)
    assert others.missing == {}
    found = Measurement("k", "c", 1.0, more.ms, missing=more.missing)
    assert found.others == {"quick": 2.0}
    told = found.as_dict(None)["missing"]
    assert isinstance(told, dict)
    assert told["flash"].startswith("RuntimeError: no such kernel")
    assert len(told["flash"]) == NOTE
    assert "; no flash: RuntimeError: no such kernel xxx" in report.measured(found, None)


def attended(monkeypatch: pytest.MonkeyPatch, flex: Any) -> tuple[list[Check], Baselines]:
    """What is told of FlexAttention where ours gives ones."""
    q = torch.ones(1, 1, 256, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(block_attention, "block_attention", lambda *given: (q, None))
    monkeypatch.setattr(block_attention, "queued_milliseconds", lambda call, calls: 3.0)
    monkeypatch.setattr(block_attention, "compact", lambda *given: None)
    monkeypatch.setattr(block_attention, "_compiled", lambda: flex)
    mask, others = torch.ones(1, 1, 2, 2, dtype=torch.bool).tril(), Baselines()
    return [*block_attention._flex(q, q, q, mask, "c", others)], others


def test_attention_that_differs_from_another_s_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def flex(q: Tensor, *given: Any, **options: Any) -> Tensor:
        return q.clone()

    def another(q: Tensor, *given: Any, **options: Any) -> Tensor:
        return q.index_fill(2, torch.tensor([255]), 0.5)

    [found], others = attended(monkeypatch, flex)
    assert found.passed
    assert (others.ms, others.missing) == ({"FlexAttention": 3.0}, {})
    [found], others = attended(monkeypatch, another)
    assert not found.passed
    assert others.ms == {}
    assert "FlexAttention" in others.missing


def test_another_s_attention_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def flex(q: Tensor, *given: Any, **options: Any) -> Tensor:
        raise RuntimeError("does not lower")

    found, others = attended(monkeypatch, flex)
    assert found == []
    assert others.missing == {"FlexAttention": "RuntimeError: does not lower"}
