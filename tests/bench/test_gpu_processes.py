"""The GPU bench's processes, without a GPU: a case that breaks, dies or hangs takes nothing else with it."""

import json
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srrc.bench.gpu import __main__ as bench
from srrc.bench.gpu import child, children
from srrc.bench.gpu.cases import CASES
from srrc.bench.gpu.record import Check, Measurement, Skipped

CHECK = {"kernel": "compact", "case": "c", "error": 0.0, "allowed": 1.0}
TOLD = [
    {"kind": "ceilings", "what": {"bandwidth": 1e12, "compute": 1e14}},
    {"kind": "check", "what": CHECK},
    {"kind": "measurement", "what": {"kernel": "compact", "case": "c", "ms": 1.0, "bytes": 5e8}},
]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a case's process runs instead: NAME is the case, tell(...) writes a line, and WARM says what is asked."""
    path = tmp_path / "child.py"
    monkeypatch.setattr(children, "COMMAND", (sys.executable, str(path)))
    return path


def write(script: Path, body: str) -> None:
    head = f"""
    import json, os, subprocess, sys, time
    NAME, INTO, WARM = sys.argv[2], sys.argv[4], "--warm" in sys.argv
    TOLD = json.loads({json.dumps(TOLD)!r})
    def tell(*lines):
        with open(INTO, "a") as file:
            for line in lines:
                file.write(json.dumps(line) + chr(10))
    def done():
        tell({{"kind": "done", "what": None}})
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))


def lines(script: Path, body: str, limit: float = 30.0) -> list[dict[str, Any]]:
    write(script, body)
    return [*children.Child("compact", script.parent).lines(limit)]


def test_what_a_process_finds_is_handed_back(script: Path) -> None:
    assert lines(script, "tell(*TOLD); done()") == TOLD


def test_one_that_dies_is_broken_and_what_it_found_is_kept(script: Path) -> None:
    found = lines(script, "tell(*TOLD); print('an illegal memory access', flush=True); os.abort()")
    assert found[:-1] == TOLD
    assert found[-1]["kind"] == "broken"
    assert "it ended with -6" in found[-1]["what"]
    assert "an illegal memory access" in found[-1]["what"]


def test_one_that_ends_without_a_last_line_is_broken(script: Path) -> None:
    assert [line["kind"] for line in lines(script, "tell(*TOLD[:1])")] == ["ceilings", "broken"]


def test_half_a_line_is_waited_for(script: Path) -> None:
    body = """
    whole = json.dumps(TOLD[0]) + chr(10)
    for part in (whole[:9], whole[9:]):
        with open(INTO, "a") as file:
            file.write(part)
        time.sleep(0.2)
    done()
    """
    assert lines(script, body) == TOLD[:1]


def test_one_that_hangs_is_killed_along_with_what_it_started(script: Path) -> None:
    body = """
    late = "import sys, time; time.sleep(4); open(sys.argv[1], 'w')"
    subprocess.Popen([sys.executable, "-c", late, INTO + ".late"])
    tell(*TOLD); time.sleep(60)
    """
    began = time.monotonic()
    found = lines(script, body, limit=2.0)
    assert time.monotonic() - began < 20
    assert found[:-1] == TOLD
    assert "killed after 2 s" in found[-1]["what"]
    time.sleep(4)
    assert not [*script.parent.glob("*.late")]


def test_a_process_that_hangs_once_it_is_done_is_not_waited_for(script: Path) -> None:
    began = time.monotonic()
    assert lines(script, "tell(*TOLD); done(); time.sleep(60)") == TOLD
    assert time.monotonic() - began < 20


def test_warming_names_those_that_take_too_long(script: Path, tmp_path: Path) -> None:
    write(script, "time.sleep(60 if NAME == 'decode' else 0)")
    assert children.warm(("compact", "decode"), tmp_path, [], 5.0) == ["decode"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nothing is run on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    monkeypatch.setattr("srrc.backends.triton.card.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(bench.signal, "signal", lambda *given: None)


@pytest.mark.usefixtures("card")
def test_a_run(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One dies, one is skipped, one raises and goes on, one is right; the file is written after each."""
    out = tmp_path / "found.json"
    body = f"""
    if WARM:
        sys.exit()
    before = json.load(open({str(out)!r}))
    assert before["finished"] is False
    if NAME == "ceilings":
        tell(TOLD[0])
    if NAME == "decode":
        assert before["bandwidth"] == 1e12
        tell(TOLD[1])
        os.abort()
    if NAME == "select":
        assert len(before["checks"]) == 1 and "decode" in before["broken"]
        tell({{"kind": "skipped", "what": "no such thing here"}})
    if NAME == "vocab_head":
        assert before["skipped"] == {{"select": "no such thing here"}}
        tell({{"kind": "broken", "what": "a traceback"}}, TOLD[2])
    if NAME == "compact":
        tell(*TOLD[1:])
    done()
    """
    write(script, body)
    only = [word for name in ("compact", "vocab_head", "select", "decode") for word in ("--only", name)]
    assert bench.main([*only, "--json", str(out)]) == 1
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["finished"] is True
    assert found["broken"].keys() == {"decode", "vocab_head"}
    assert found["skipped"] == {"select": "no such thing here"}
    assert [each["kernel"] for each in found["checks"]] == ["compact"] * 2
    assert [each["of_ceiling"] for each in found["measurements"]] == pytest.approx([0.5, 0.5])
    assert {"card", "torch", "triton", "commit", "dirty"} <= found.keys()
    assert list(found["seconds"]) == ["ceilings", "decode", "select", "vocab_head", "compact"]
    assert "2 checks, 0 wrong; 2 broken, 1 skipped" in said
    assert "BROKEN decode: it ended with -6" in said


@pytest.mark.usefixtures("card")
def test_all_right_is_zero_and_a_wrong_check_is_one(script: Path) -> None:
    write(script, "tell(*TOLD[1:]); done()")
    assert bench.main(["--only", "compact", "--checks"]) == 0
    write(script, "TOLD[1]['what']['error'] = float('nan'); tell(TOLD[1]); done()")
    assert bench.main(["--only", "compact", "--checks"]) == 1


def test_an_unknown_case_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "nonsense", "--only", "compact"]) == 2
    said = capsys.readouterr().out
    assert "no case is called nonsense" in said
    assert all(name in said for name in CASES)


@pytest.mark.usefixtures("card")
def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(script, f"open({str(tmp_path / 'ran')!r}, 'w'); done()")
    assert bench.main(["--only", "compact", "--json", str(tmp_path / "no" / "found.json")]) == 2
    assert "cannot write" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.usefixtures("card")
def test_what_the_kernels_need_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert bench.main([]) == 2
    assert "7.5, where 8.0 is needed" in capsys.readouterr().out
    monkeypatch.setattr("srrc.backends.triton.card.importlib.util.find_spec", lambda name: None)
    assert bench.main([]) == 2
    assert "Triton is not there: pip install triton" in capsys.readouterr().out


def walked(monkeypatch: pytest.MonkeyPatch, checks: Any, measurements: Any, *, measure: bool = True) -> Any:
    told: list[tuple[str, Any]] = []
    fake = SimpleNamespace(checks=checks, measurements=measurements)
    monkeypatch.setitem(sys.modules, "srrc.bench.gpu.fake", fake)
    child.walk("fake", lambda kind, what: told.append((kind, what)), measure=measure)
    return told


def right() -> Iterator[Check]:
    yield Check("fake", "c", 0.0, 1.0)


def times() -> Iterator[Measurement | Check]:
    yield Measurement("fake", "m", 1.0)
    yield Check("fake", "c", 0.0, 1.0)


def test_what_a_case_finds_is_told_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [kind for kind, _ in walked(monkeypatch, right, times)] == ["check", "measurement", "check"]
    assert [kind for kind, _ in walked(monkeypatch, right, times, measure=False)] == ["check"]


def test_checks_that_raise_leave_what_was_found_and_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Iterator[Check]:
        yield from right()
        raise ValueError("no such kernel")

    told = walked(monkeypatch, raises, times)
    assert [kind for kind, _ in told] == ["check", "broken", "measurement", "check"]
    assert "no such kernel" in told[1][1]


def test_nothing_more_is_asked_of_a_broken_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Iterator[Check]:
        raise RuntimeError("an illegal memory access")
        yield

    def dead() -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert [kind for kind, _ in walked(monkeypatch, raises, times)] == ["broken"]


def test_a_case_that_cannot_run_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def skips() -> Iterator[Check]:
        raise Skipped("no room")
        yield

    assert walked(monkeypatch, skips, times) == [("skipped", "no room")]


def test_a_case_that_cannot_be_imported_is_broken() -> None:
    told: list[tuple[str, Any]] = []
    child.walk("no_such_case", lambda kind, what: told.append((kind, what)), measure=True)
    assert [kind for kind, _ in told] == ["broken"]
