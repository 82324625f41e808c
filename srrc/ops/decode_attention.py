"""srr::decode_attention: exact scaled-dot-product attention, fast for few queries.

    decode_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool is_causal) -> Tensor

q [B, Hq, Q, D]; k [B, Hkv, S, D]; v [B, Hkv, S, Dv], any strides; Hq a multiple of Hkv (grouped queries
share a key-value head, nothing is expanded); mask bool (True = look) or float (added), broadcastable to
[B, Hq, Q, S], or None; is_causal as in torch: query i sees keys 0..i -> contiguous [B, Hq, Q, Dv].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.register import Grads, Needs, register


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """The truth: torch's own scaled_dot_product_attention."""
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )
    return out.contiguous()


def fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """Output shape only."""
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def backward(
    grad: Tensor,
    needs: Needs,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    is_causal: bool,
) -> Grads:
    """Gradients of q, k, v and a float mask, by recomputing the probabilities in float32."""
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)

    def grouped(t: Tensor) -> Tensor:  # [B, Hq, Q, D] -> [B, Hkv, G * Q, D]
        return t.reshape(batch, kv_heads, -1, t.shape[-1]).to(wide)

    qg, kf, vf, gg = grouped(q), k.to(wide), v.to(wide), grouped(grad)
    scores = (qg @ kf.transpose(-1, -2) * scale).view(batch, heads, queries, keys)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    if is_causal:
        visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~visible, float("-inf"))
    # A row with every key masked out: zeros, as torch's safe softmax gives.
    p = torch.softmax(scores, -1).masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
    pg = p.view(batch, kv_heads, -1, keys)
    grad_p = gg @ vf.transpose(-1, -2)
    grad_scores = pg * (grad_p - (grad_p * pg).sum(-1, keepdim=True))
    found: dict[str, Tensor | list[Tensor | None] | None] = {
        "q": (grad_scores @ kf * scale).view(q.shape).to(q.dtype) if needs["q"] else None,
        "k": (grad_scores.transpose(-1, -2) @ qg * scale).to(k.dtype) if needs["k"] else None,
        "v": (pg.transpose(-1, -2) @ gg).to(v.dtype) if needs["v"] else None,
    }
    if mask is not None and needs["mask"]:
        whole = grad_scores.view(batch, heads, queries, keys)
        found["mask"] = whole.sum_to_size(mask.shape).to(mask.dtype)
    return found


op = register(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool is_causal) -> Tensor",
    reference,
    fake,
    backward,
)
