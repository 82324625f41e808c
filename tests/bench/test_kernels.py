"""The bench of single kernels: every case runs, in both dtypes, at every width that the pool holds."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from srrc.backends.cpu import build
from srrc.bench import kernels

needs_kernels = pytest.mark.skipif(not build.ensure_built(), reason="no C++ compiler")


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(kernels.main)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


@needs_kernels
def test_every_op_is_measured_in_both_dtypes(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    run("--megabytes", "24", "--rounds", "1", "--json", str(out))
    found = json.loads(out.read_text())
    assert [run["stream_gigabytes_per_second"] > 0 for run in found["runs"]] == [True, True]
    for each in found["runs"]:
        assert {result["op"] for result in each["results"]} >= {
            "dense_linear",
            "channel_linear",
            "dense_mlp",
            "neuron_mlp",
            "decode_attention",
        }
        assert all(result["microseconds"] > 0 for result in each["results"])


@needs_kernels
def test_widths_that_the_pool_does_not_hold_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    run("--megabytes", "97", "--rounds", "1", "--dtype", "bfloat16", "--only", "mlp", "--json", str(out))
    shapes = {result["what"].split("]")[0] for result in json.loads(out.read_text())["runs"][0]["results"]}
    assert shapes == {"[1536, 576", "[8192, 2048"}
