"""Every kernel compiles for every target without a GPU, in no more registers and shared memory than were recorded.

Other versions of Triton compile to other registers: what was recorded is asked of the one that recorded it. What a card
has of shared memory is asked of all.

python -m srrc.backends.triton.ahead > tests/backends/triton/ceilings.jsonl     records them anew
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from srrc.backends.triton.ahead import TARGETS, build
from srrc.backends.triton.kernels.sparse_linear import default_config
from srrc.backends.triton.shared_memory import LEAST

RECORDED_BY = "3.9"
CEILINGS = Path(__file__).with_name("ceilings.jsonl")
COMPILED = {"sm_80": "", "sm_89": "block_attention", "sm_90": "", "gfx942": ""}
"""By target: how the names begin of what is compiled; for sm_89, sm_80 with less shared memory, of what needs most."""


def parse(lines: str) -> dict[tuple[str, str], dict[str, int]]:
    """By name and target: the numbers."""
    made = map(json.loads, lines.splitlines())
    return {(m.pop("name"), m.pop("target")): m for m in made}


RECORDED = parse(CEILINGS.read_text())


@pytest.mark.parametrize("target", COMPILED)
def test_compiles_within_what_was_recorded(target: str, tmp_path: Path) -> None:
    # A process of its own: in this one Triton interprets. A cache of its own: what is cached was not compiled.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "srrc.backends.triton.ahead", target, "--only", COMPILED[target]]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    found = parse(ran.stdout)
    assert found.keys() == {
        key for key in RECORDED if key[1] == target and key[0].startswith(COMPILED[target])
    }
    assert not {key: made for key, made in found.items() if made["shared"] > TARGETS[target].room}
    if not triton.__version__.startswith(RECORDED_BY):
        return
    above = {key: made for key, made in found.items() if any(made[of] > RECORDED[key][of] for of in made)}
    assert not above


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("outputs", [4096, 6144])
def test_linears_of_float32_fit_where_nothing_was_measured(target: str, outputs: int) -> None:
    """Every default is among what is compiled, and of what the target has a program may have as much."""
    room = TARGETS[target].room
    config = default_config(4096, outputs, torch.float32, room)
    for rows in (1, 8):
        kind = f"dot, {config.block_n} outputs, {config.num_stages} stages"
        assert RECORDED[f"sparse_linear[fp32, fp32, {rows} rows, {kind}]", target]["shared"] <= room


def stages(card: Any) -> dict[str, str]:
    """By name: Triton's own code of kernels for several rows of x."""
    from srrc.backends.triton.kernels import estimator, vocab_head  # in a process where they are compiled

    chosen = [estimator._ahead("bf16", 2, 64, estimator.Config(block_k=64, fused=True))]
    chosen += [each for each in estimator.AHEAD if each.name == "estimator, projection[bf16, 8 rows]"]
    chosen += [each for each in vocab_head.AHEAD if "bf16, bf16, 8 rows" in each.name]
    return {each.name: build(each, "sm_80").asm["ttir"] for each in chosen}


def test_rows_may_lie_far_apart(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    """A row's offset is a product of 64 bits: a view's stride times seven may be more than 32 hold."""
    found = on_card(stages)
    assert len(found) == 5
    for name, code in found.items():
        assert re.findall(r"= ([a-z]+\.\w+) .*%stride_x\b", code) == ["arith.extsi"], name
        assert {*re.findall(r"= ([a-z]+\.\w+) .*%stride_c\b", code)} <= {"arith.extsi"}, name


def test_what_a_small_card_is_given_fits_it() -> None:
    """By what was recorded for sm_80 too, which is compiled whole."""
    for (name, target), made in RECORDED.items():
        if target.startswith("sm_8") and (name, "sm_89") in RECORDED:
            assert made["shared"] <= LEAST, (name, target)
    assert {name for name, target in RECORDED if (name, "sm_89") not in RECORDED} == {
        "block_attention[bf16, D 256, 64 x 32, 3 stages]"
    }
