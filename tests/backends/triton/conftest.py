"""Kernels under Triton's interpreter.

The interpreter computes bfloat16 wrongly; fp16 stands in for it, and `python -m srrc.bench.gpu` checks both on a card.
"""

from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="Triton is made for Linux alone")


@pytest.fixture(autouse=True, scope="module")
def interpreter() -> Iterator[None]:
    """Parts of the interpreter are imported when they are first used, and ask again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
