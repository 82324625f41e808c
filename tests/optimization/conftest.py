"""Tiny models whose gates save time."""

from collections.abc import Callable
from typing import Any

import pytest

from srrc.optimization import one_file
from srrc.optimization.plan import Saving


@pytest.fixture(scope="session")
def let_gates_pay() -> Callable[[pytest.MonkeyPatch], None]:
    """On a tiny model no gate saves time: this lets them, so that there are some."""

    def savings(
        dense: Any, gated: Any, feeds: Any, gates: Any, *rest: Any
    ) -> tuple[float, dict[str, Saving]]:
        return 1.0, {gate: Saving(0.1, 0.001) for gate in gates}

    return lambda patch: patch.setattr(one_file, "measure_savings", savings)


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch, let_gates_pay: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Gates pay in this test."""
    let_gates_pay(monkeypatch)
