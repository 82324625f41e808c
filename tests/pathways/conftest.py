"""Forward graphs of the tiny families, captured once for all tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from srrc.models_zoo import families


@pytest.fixture(scope="session")
def _graphs() -> dict[str, Any]:
    return {}


@pytest.fixture
def family_graph(_graphs: dict[str, Any], capture: Any) -> Callable[[str], Any]:
    """`family_graph(name)` -> the captured graph of one forward call at batch 2 and length 8."""

    def graph(name: str) -> Any:
        if name not in _graphs:
            tiny = families.tiny(name)
            # The published initialisation leaves biases at zero, which would hide a bias that is dropped.
            with torch.no_grad():
                generator = torch.Generator().manual_seed(1)
                for parameter in tiny.model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            (_graphs[name],) = capture(tiny.model, **tiny.inputs(2, 8))
        return _graphs[name]

    return graph
