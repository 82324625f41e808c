"""Tiny models whose gates save time."""

from typing import Any

import pytest

from srrc.optimization import one_file
from srrc.optimization.plan import Saving


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model no gate saves time: let them, so that there are some."""

    def savings(
        dense: Any, gated: Any, feeds: Any, gates: Any, *rest: Any
    ) -> tuple[float, dict[str, Saving]]:
        return 1.0, {gate: Saving(0.1, 0.001) for gate in gates}

    monkeypatch.setattr(one_file, "measure_savings", savings)
