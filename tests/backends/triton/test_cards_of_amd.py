"""AMD's cards beside the one of `ahead.TARGETS`: what their compiler refuses, others do not."""

import dataclasses
from collections.abc import Callable
from typing import Any

from triton.backends.compiler import GPUTarget

from srrc.backends.triton import ahead
from srrc.backends.triton.kernels import sparse_linear

LANES = {"gfx90a": 64, "gfx950": 64, "gfx1100": 32}
"""Of MI200, MI350 and RDNA 3."""


def coarse_head(card: Any) -> list[str]:
    """The launch of a head's coarse copy, compiled for each."""
    [launch] = [each for each in sparse_linear.AHEAD if "8 rows, dot, scales by channel" in each.name]
    for name, lanes in LANES.items():
        ahead.TARGETS[name] = dataclasses.replace(ahead.TARGETS["gfx942"], gpu=GPUTarget("hip", name, lanes))
    return [ahead.assemble(launch, name).target for name in LANES]


def test_products_of_float32(on_card: Callable[[Callable[[Any], Any]], Any]) -> None:
    """TF32 is unknown to most of them: where it is asked for by name, a whole graph falls to dense."""
    assert on_card(coarse_head) == [*LANES]
