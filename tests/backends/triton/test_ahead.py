"""Every kernel compiles for every target without a GPU, in no more registers than were recorded.

Other versions of Triton compile to other registers: what was recorded is asked of the one that recorded it.

python -m srrc.backends.triton.ahead > tests/backends/triton/ceilings.jsonl     records them anew
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

RECORDED_BY = "3.9"
CEILINGS = Path(__file__).with_name("ceilings.jsonl")
TARGETS = ("sm_80", "sm_90", "gfx942")


def parse(lines: str) -> dict[tuple[str, str], tuple[int, int]]:
    made = map(json.loads, lines.splitlines())
    return {(m["name"], m["target"]): (m["registers"], m["spills"]) for m in made}


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_within_what_was_recorded(target: str, tmp_path: Path) -> None:
    # A process of its own: in this one Triton interprets. A cache of its own: what is cached was not compiled.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "srrc.backends.triton.ahead", target]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    recorded = {key: limit for key, limit in parse(CEILINGS.read_text()).items() if key[1] == target}
    found = parse(ran.stdout)
    assert found.keys() == recorded.keys()
    if not triton.__version__.startswith(RECORDED_BY):
        return
    above = {
        key: made for key, made in found.items() if made[0] > recorded[key][0] or made[1] > recorded[key][1]
    }
    assert not above
