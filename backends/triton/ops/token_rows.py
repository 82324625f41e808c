"""The tokens that a layer computes, gathered and scattered, in the graph: `kernels/token_rows.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.token_rows import gather, scatter


@triton_op("srr_triton::gather_rows", mutates_args=())
def gather_rows(x: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """X [T, H], index int32 [C], count int32 [1] -> [C, H], zeros past the count.

    Raises ValueError for what the kernel does not take.
    """
    return gather(x, index, count)


@triton_op("srr_triton::scatter_rows", mutates_args=("base",))
def scatter_rows(base: Tensor, rows: Tensor, index: Tensor, count: Tensor, add: bool = True) -> None:
    """Add rows [C, H] to base [T, H] at index[:count], in place; or put them there.

    Raises ValueError for what the kernel does not take.
    """
    scatter(base, rows, index, count, add=add)
