"""Attention over the key blocks that a mask names, in the graph: `kernels/block_attention.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.block_attention import block_attention as launch
from srrc.backends.triton.kernels.block_mask import Blocks


@triton_op("srr_triton::block_attention", mutates_args=())
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    block_queries: int = 128,
    block_keys: int = 128,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Q [B, H, Tq, D], k and v [B, G, Tk, D], index and counts of `block_mask`, made with the same block and the rest.

    -> out of q's shape and layout, lse float32 [B, H, Tq]. Raises ValueError for what the kernel does not take, and for
    lists of as many blocks as another block size gives.
    """
    block = block_queries, block_keys
    return launch(q, k, v, Blocks(index, counts, block, q.shape[2], k.shape[2], causal, window), scale=scale)
