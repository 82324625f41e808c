"""Kernels under Triton's interpreter.

The interpreter computes bfloat16 wrongly; fp16 stands in for it, and `python -m srrc.bench.gpu` checks both on a card.
"""

from collections.abc import Iterator

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="Triton is made for Linux alone")


def _version(of: str) -> tuple[int, ...]:
    return tuple(map(int, of.split(".")[:2]))


@pytest.fixture(autouse=True, scope="module")
def interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Parts of the interpreter are imported when they are first used, and ask again."""
    if request.path.name == "test_ahead.py":  # interprets nothing
        yield
        return
    if _version(triton.__version__) < (3, 7) and _version(np.__version__) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 takes arrays for numbers, which NumPy 2.4 refuses")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
