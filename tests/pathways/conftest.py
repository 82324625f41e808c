"""Forward graphs of the tiny families, captured once for all tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from srrc.models_zoo import families


@pytest.fixture(scope="session")
def _graphs() -> dict[tuple[str, bool | None], Any]:
    return {}


@pytest.fixture
def family_graph(_graphs: dict[tuple[str, bool | None], Any], capture: Any) -> Callable[..., Any]:
    """`family_graph(name, dynamic=None)` -> the graph of one forward call at batch 2 and length 8."""

    def graph(name: str, *, dynamic: bool | None = None) -> Any:
        if (name, dynamic) not in _graphs:
            tiny = families.tiny(name)
            # The published initialisation leaves biases at zero, which would hide a bias that is dropped.
            with torch.no_grad():
                generator = torch.Generator().manual_seed(1)
                for parameter in tiny.model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            (_graphs[name, dynamic],) = capture(tiny.model, dynamic=dynamic, **tiny.inputs(2, 8))
        return _graphs[name, dynamic]

    return graph
