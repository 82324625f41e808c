"""Tiny models whose gates save time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from srrc.models_zoo import families
from srrc.optimization import one_file
from srrc.optimization.plan import Saving


@pytest.fixture(scope="session")
def lively() -> Callable[..., Any]:
    """Tiny models, by family, with weights large enough for their layers to say more than the last token again."""

    def make(name: str, by: float = 10.0) -> Any:
        model = families.tiny(name).model
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if weight.dim() == 2 and not any(each in key for each in ("embed", "shared", "lm_head")):
                    weight.mul_(by)
        return model

    return make


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
