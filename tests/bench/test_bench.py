"""The whole bench on a tiny random Llama: processes, compilation, table, JSON and plot."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import srrc
from srrc import cli
from srrc.bench import run as bench_run
from srrc.bench.run import bench
from srrc.bench.settings import Settings
from srrc.models_zoo import families

FACTORY = """
def llama():
    from srrc.models_zoo import families

    return families.tiny("llama").model


def bert():
    from srrc.models_zoo import families

    return families.tiny("bert").model


class Letters:
    def __call__(self, text, **options):
        return {"input_ids": [ord(letter) % 256 for letter in text]}

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def reads():
    return llama(), Letters()


def only_once():
    import os, sys

    if "srrc.bench.worker" in getattr(sys.modules["__main__"].__spec__, "name", ""):
        os._exit(7)
    return llama()
"""

SCHEMA = {
    "name": str,
    "decode_tokens_per_s": float,
    "prefill_tokens_per_s": float,
    "flops_per_token": float,
    "bytes_per_token": float,
    "peak_memory_bytes": int,
    "compile_cold_s": type(None),  # a smoke run times no compilation
    "compile_warm_s": type(None),
    "perplexity": float,
    "relative_perplexity": float,
    "kl": float,
}


@pytest.fixture(autouse=True)
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `tiny_models` that the workers can import."""
    (tmp_path / "tiny_models.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *arguments])


def test_two_variants_of_a_tiny_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = bench_run._write_json
    monkeypatch.setattr(
        bench_run, "_write_json", lambda path, found: (write(path, found), written.append(path.read_text()))
    )
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "new" / "bench.json", tmp_path / "bench.png"
    result = run(
        "tiny_models:llama", "--quick", "--variants", "eager,srr", "--json", str(out), "--plot", str(picture)
    )
    assert result.exit_code == 0, result.output
    assert "Speed: tiny_models:llama, float32, 1 thread" in result.stdout
    value = json.loads(out.read_text())
    assert value["failed"] == []
    assert value["machine"]["threads"] == 1
    eager, srr = value["variants"]
    assert (eager["name"], srr["name"]) == ("eager", "srr")
    for row in (eager, srr):
        for name, kind in SCHEMA.items():
            assert isinstance(row[name], kind), (row["name"], name, row[name])
        assert row["greedy"]["prompts_equal"] == row["greedy"]["prompts"] == 2
        assert row["recompiled_while_measuring"] == 0
    assert srr["kl"] < 1e-6
    assert srr["flops_per_token"] == eager["flops_per_token"] > 0
    assert srr["speedups"]["eager"]["decode"]["median"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.parent.iterdir()] == ["bench.json"]
    # What was measured is on disk after each part: the speed first, then one domain more each time.
    parts = [json.loads(text)["variants"][-1] for text in written]
    assert all(part["decode_ms"] for part in parts)
    read = [len(part["domains"]) for part in parts]
    assert read == [*range(read[-1] + 1), read[-1]]


def test_quality_is_judged_by_kinds_of_text_and_requests(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    result = run("tiny_models:reads", "--quality", "--quick", "--variants", "eager,srr", "--json", str(out))
    assert result.exit_code == 0, result.output
    assert "Held-out text" in result.stdout
    assert "Requests" in result.stdout
    for row in json.loads(out.read_text())["variants"]:
        assert row["scenarios"].keys() == {"factual", "creative", "arithmetic", "multi-step"}
        assert row["domains"].keys() == {"docs", "essays", "arithmetic"}
        assert row["decode_ms"] is None
        for told in row["scenarios"].values():
            assert told["same"] == told["agreed"] == 1.0
            assert told["change"] == 0.0


def test_a_variant_whose_process_dies_leaves_one_line(tmp_path: Path) -> None:
    result = run(
        "tiny_models:only_once", "--quick", "--variants", "eager", "--json", str(tmp_path / "x.json")
    )
    assert result.exit_code == 2
    assert "eager is missing: the process died (exit code 7)" in result.stdout
    assert json.loads((tmp_path / "x.json").read_text())["variants"] == []
    assert result.stderr.splitlines()[-1].startswith(
        "srrc: no variant of 'tiny_models:only_once' could be measured"
    )


@pytest.mark.slow
def test_budgets_beside_random_routing(tmp_path: Path) -> None:
    tiny = families.tiny("llama")
    batches = [tiny.inputs(2, 32, seed=seed) for seed in range(4)]
    profile = srrc.calibrate(tiny.model, batches=batches, quick=True, progress=False)
    profile.save(tmp_path / "tiny.srr")
    out = tmp_path / "x.json"
    routed = (
        "--variants",
        "eager,routed,random",
        "--budgets",
        "0.9,0.5",
        "--profile",
        str(tmp_path / "tiny.srr"),
    )
    result = run("tiny_models:llama", "--quick", *routed, "--json", str(out))
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(out.read_text())["variants"]}
    assert list(rows) == ["eager", "srr-0.9", "srr-0.5", "random-0.9", "random-0.5"]
    assert rows["eager"]["kl"] == 0 < rows["srr-0.9"]["kl"] < rows["srr-0.5"]["kl"]
    assert rows["srr-0.5"]["flops_of_dense"] < rows["srr-0.9"]["flops_of_dense"] < 1
    assert rows["srr-0.9"]["kl"] < rows["random-0.9"]["kl"]
    assert not any(row["recompiled_while_measuring"] for row in rows.values())


def test_guards_are_left_out_of_every_variant(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    result = run("tiny_models:llama", "--quick", "--no-guards", "--variants", "eager,srr", "--json", str(out))
    assert result.exit_code == 0, result.output
    assert "no guards" in result.stdout
    for row in json.loads(out.read_text())["variants"]:
        assert row["greedy"]["prompts_equal"] == row["greedy"]["prompts"] == 2
        assert row["recompiled_while_measuring"] == 0


@pytest.mark.slow
def test_compilation_is_timed_cold_and_warm() -> None:
    settings = dataclasses.replace(Settings("tiny_models:llama").quick(), cold=True)
    (row,) = bench(settings, kinds=["srr"])["variants"]
    assert 0 < row["compile_warm_s"] < row["compile_cold_s"]
    assert row["kl"] is None  # nothing to compare with


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny_models:llama", "--budgets", "half"), "'half' is not a number"),
        (("tiny_models:llama", "--variants", "inductr"), "did you mean 'inductor'"),
        (("tiny_models:llama", "--variants", "routed"), "needs --profile"),
        (("tiny_models:llama", "--dtype", "float8"), "no dtype 'float8'"),
        (("tiny_models:llama", "--threads", "0"), "threads=0"),
        (("tiny_models:llama", "--profile", "missing.srr"), "no profile at missing.srr"),
        (("tiny_models:bert",), "writes no text"),
        (("tiny_models:llama", "--quality"), "without a tokenizer"),
        (("tiny_models:llama", "--quality", "--tasks", "0"), "tasks=0"),
        (("smollm2-135",), "did you mean 'smollm2-135m'"),
    ],
)
def test_bench_refuses_bad_input(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("srrc: ")
