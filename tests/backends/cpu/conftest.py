"""The native kernels for each instruction set that this machine runs, and how good a result must be."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from srrc.backends.cpu import build, toolchain
from srrc.backends.cpu.toolchain import CAPABILITIES, Capability

WIDE = "wide"
"""Vectors as wide as AVX-512's, made of whatever this machine has: the same code, testable everywhere."""


BEST = toolchain.detect_capability()
RUNNABLE = list(CAPABILITIES)[: list(CAPABILITIES).index(BEST) + 1]


@pytest.fixture(scope="session", params=RUNNABLE if BEST == "avx512" else [*RUNNABLE, WIDE])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set whose kernels serve the ops meanwhile."""
    name = request.param
    if not build.ensure_built():
        pytest.skip(f"no native kernels: {build.refusal()}")
    patch = pytest.MonkeyPatch()
    patch.setitem(CAPABILITIES, WIDE, Capability(CAPABILITIES[BEST].flags, 64))
    used = build.capability()
    build.use_capability(name)
    yield name
    patch.undo()
    assert used is not None
    build.use_capability(used)


Judge = Callable[..., None]


@pytest.fixture(scope="session")
def assert_as_good() -> Judge:
    """`assert_as_good(ours, eager, exact)`: no further from float64 than eager is, by half, and a rounding.

    The rounding is of the size of the greatest exact result, or of `scale` where results are what is left of
    greater things.
    """

    def judge(ours: Tensor, eager: Tensor, exact: Tensor, scale: Tensor | None = None) -> None:
        assert ours.dtype == eager.dtype
        assert ours.shape == eager.shape
        size = (exact if scale is None else scale).abs().amax().double()
        allowed = 1.5 * (eager.double() - exact).abs().amax() + torch.finfo(eager.dtype).eps * size
        error = (ours.double() - exact).abs().amax()
        assert error <= allowed, f"{error:.3g} from float64, where {allowed:.3g} is allowed"

    return judge
