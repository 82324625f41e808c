"""Gates on captured graphs, for the tests of the passes that put them in and lay out weights."""

from collections.abc import Callable
from typing import Any

import pytest

from srrc.passes.gating.source import GateSource


@pytest.fixture
def source() -> Callable[..., GateSource]:
    """`source(captured, covers, **options)` -> what gates of that graph are made from."""

    def make(captured: Any, covers: Callable[[str], bool] = lambda gate: True, **options: Any) -> GateSource:
        names = [node.name for node in captured.gm.graph.find_nodes(op="placeholder")]
        held = dict(zip(names, captured.inputs, strict=True))
        weights = {name: held[name] for name in captured.context.fqns}
        return GateSource(covers=covers, weights=weights, **options)

    return make
