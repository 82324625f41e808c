"""Which units are kept, as a list, in the graph: `kernels/compact.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.compact import compact as launch


@triton_op("srr_triton::compact", mutates_args=())
def compact(mask: Tensor, capacity: int | None = None, fill: int | None = None) -> tuple[Tensor, Tensor]:
    """Mask bool [R, N] -> index int32 [R, capacity or N], which holds `fill` past the count, and count int32 [R].

    Raises ValueError for what the kernel does not take.
    """
    return launch(mask, capacity=capacity, fill=fill)
