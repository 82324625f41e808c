"""Each pair of a token and an expert through its expert's weight, in the graph: `kernels/grouped_linear.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.grouped_linear import grouped_linear as launch


@triton_op("srr_triton::grouped_linear", mutates_args=())
def grouped_linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    offsets: Tensor,
    pair_weight: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """X [T, K], weight [E, N, K], order int32 [P], offsets int32 [E + 1], pair_weight float32 [P] -> [P, N].

    A weight of int8 has a scale, float32 [E, N]. Raises ValueError for what the kernel does not take.
    """
    return launch(x, weight, order, offsets, pair_weight, scale)
