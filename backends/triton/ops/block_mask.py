"""The lists of key blocks that each query block sees, in the graph: `kernels/block_mask.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.block_mask import compact


@triton_op("srr_triton::block_mask", mutates_args=())
def block_mask(
    mask: Tensor,
    queries: int,
    keys: int,
    block_queries: int = 128,
    block_keys: int = 128,
    causal: bool = True,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask bool [B or 1, H or 1, query blocks, key blocks] -> index and counts int32, as `Blocks` has them.

    Raises ValueError for what the kernel does not take.
    """
    block = block_queries, block_keys
    found = compact(mask, queries, keys, block=block, causal=causal, window=window)
    return found.index, found.counts
