"""The positions of a cache that are kept, side by side, in the graph: `kernels/kv_gather.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.kv_gather import kv_gather as launch


@triton_op("srr_triton::kv_gather", mutates_args=())
def kv_gather(keys: Tensor, values: Tensor, index: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """keys, values [B, H, S, D], index int32 [B, H, S'], count int32 [B, H] -> both [B, H, S', D].

    What is past the count is undefined. Raises ValueError for what the kernel does not take.
    """
    return launch(keys, values, index, count)


@triton_op("srr_triton::kv_gather_into", mutates_args=("out_keys", "out_values"))
def kv_gather_into(
    keys: Tensor, values: Tensor, index: Tensor, count: Tensor, out_keys: Tensor, out_values: Tensor
) -> None:
    """The same into [B, H, S', D] of a static cache, of which nothing past the count is touched."""
    launch(keys, values, index, count, (out_keys, out_values))
