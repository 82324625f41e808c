"""srr::prefill_attention: exact scaled-dot-product attention for many queries, under a mask.

    prefill_attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor

q [B, Hq, Q, D]; k [B, Hkv, S, D]; v [B, Hkv, S, Dv], any strides; Hq a multiple of Hkv; mask bool (True = look) or
float (added), broadcastable to [B, Hq, Q, S] -> [B, Hq, Q, Dv], in memory [B, Q, Hq, Dv] as torch's own gives it.

A static cache is longer than what it holds, and a causal mask hides half of what it holds. torch computes the scores
of all keys when it is given a mask; the native kernel hands it each block of queries with the keys that these see.
"""

from torch import Tensor
from torch.nn import functional as F

from srrc.ops import decode_attention
from srrc.ops.register import Grads, Needs, register


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The truth: torch's own scaled_dot_product_attention."""
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Output shape and layout only."""
    batch, heads, queries, _ = q.shape
    return q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)


def backward(
    grad: Tensor, needs: Needs, *, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> Grads:
    """Gradients of q, k, v and a float mask."""
    return decode_attention.backward(grad, needs, q=q, k=k, v=v, mask=mask, scale=scale, is_causal=False)


op = register(
    "prefill_attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor",
    reference,
    fake,
    backward,
)
