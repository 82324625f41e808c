"""Kernels under Triton's interpreter.

The interpreter computes bfloat16 wrongly; fp16 stands in for it, and `python -m srrc.bench.gpu` checks both on a card.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KERNELS = "srrc.backends.triton.kernels."
COMPILED = {
    "test_ahead.py",
    "test_cards_of_amd.py",
    "test_compiled_on_card.py",
    "test_ops_in_graphs.py",
    "test_tune.py",
}
"""They interpret nothing."""

triton = pytest.importorskip("triton", reason="Triton is made for Linux alone")


def _version(of: str) -> tuple[int, ...]:
    return tuple(map(int, of.split(".")[:2]))


@pytest.fixture(autouse=True, scope="module")
def interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Parts of the interpreter are imported when they are first used, and ask again."""
    if request.path.name in COMPILED:
        yield
        return
    if _version(triton.__version__) < (3, 7) and _version(np.__version__) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 takes arrays for numbers, which NumPy 2.4 refuses")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in [name for name in sys.modules if name.startswith(KERNELS)]:
            # PyTorch 2.11 wraps no interpreted kernel; later ones hand it back as it is.
            patch.setattr(f"{name}.wrap_triton", lambda kernel: kernel, raising=False)
        yield


@pytest.fixture(scope="session")
def on_card() -> Callable[[Callable[[Any], Any]], Any]:
    """`on_card(function)` -> what the test module's function(card) returns, in JSON's types.

    In a process of its own (`fake_card.py`), where there seems to be a card.
    """

    def run(function: Callable[[Any], Any]) -> Any:
        program = Path(__file__).with_name("fake_card.py")
        command = [sys.executable, str(program), function.__code__.co_filename, function.__name__]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run
