"""Which units are worth computing, by an estimate of low rank, in the graph: `kernels/estimator.py`."""

from torch import Tensor
from torch.library import triton_op

from srrc.backends.triton.kernels.estimator import estimator as launch


@triton_op("srr_triton::estimator", mutates_args=())
def estimator(
    x: Tensor,
    projection: Tensor,
    decoder: Tensor,
    norm: Tensor,
    gate: Tensor,
    spread: Tensor | None = None,
    projection_scale: Tensor | None = None,
    decoder_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X [B, K], projection [R, K], decoder [I, R], norm and spread float32 [I], gate float32 [2].

    Weights of int8, both of them, have scales, float32 [R] and [I].

    -> units int32 [blocks, block], counts [blocks], rows [B, blocks] and arrived [blocks * block], with which, and I,
    `lists.Kept` is made again. Raises ValueError for what the kernel does not take.
    """
    kept = launch(x, projection, decoder, norm, gate, spread, projection_scale, decoder_scale)
    return kept.units, kept.counts, kept.rows, kept.arrived
