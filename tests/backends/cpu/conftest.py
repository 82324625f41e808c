"""How good a result must be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
