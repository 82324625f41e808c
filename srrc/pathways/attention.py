"""Attention calls: pairs of query and key whose weight is next to nothing need not be computed.

Found: `scaled_dot_product_attention`, and the same written out as matmul, scale, soft cap, mask, softmax and
matmul. Keys and values are looked at through `repeat_kv`, so that grouped heads are known to be grouped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
from torch import fx

from srrc.pathways.attention_eager import Eager, read_eager
from srrc.pathways.base import Bypass, Linear, Pathway
from srrc.pathways.cost import attention_cost
from srrc.pathways.graph_view import GraphView
from srrc.pathways.linear import read_linear
from srrc.pathways.patterns import argument, is_call, is_method
from srrc.reasons import Reason, Refusal


@dataclass(frozen=True)
class Attention:
    """softmax(scale q k^T + mask) v, in `node` [B, Hq, Q, D].

    q [B, Hq, Q, D]; k, v as the call gets them: [B, Hq, S, D], or [B, Hkv, S, D] with `enable_gqa`
    mask:      added, or boolean with True where attended; None for none
    scale:     number, the node that computes it, or None for 1/sqrt(D)
    dropout_p: probability, as the graph gives it
    groups:    query heads that share one key head (Hq // Hkv)
    k_base, v_base: k and v [B, Hkv, S, D] before any repetition of heads
    softcap:   c in c * tanh(scores / c), or None
    """

    node: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    scale: float | fx.Node | None
    is_causal: bool | fx.Node
    dropout_p: float | fx.Node
    groups: int
    k_base: fx.Node
    v_base: fx.Node
    softcap: float | fx.Node | None = None


def find(view: GraphView) -> Iterator[Pathway | Refusal]:
    """One pathway for each attention call; a refusal where its head counts are not numbers."""
    for node in view.nodes:
        if is_call(node, "sdpa"):
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
            q, k, v, mask, dropout, causal, scale = (argument(node, i, name) for i, name in enumerate(names))
            call = Eager(node, q, k, v, mask, scale, dropout or 0.0, None, (node,))
        else:
            eager = read_eager(node)
            if eager is None:
                continue
            call, causal = eager, False
        yield _pathway(view, call, is_causal=causal or False)


def _pathway(view: GraphView, call: Eager, *, is_causal: bool | fx.Node) -> Pathway | Refusal:
    place = _place(view, call.q) or call.node.name
    if len(view.shape(call.q)) != 4:
        return Refusal(place, "attention", Reason.UNSUPPORTED_SHAPE, "heads are not a dimension of their own")
    refusal = _unfit(view, call, place)
    if refusal is not None:
        return refusal
    k_base, v_base = (_unrepeated(view, value, call.node) for value in (call.k, call.v))
    heads, shared = view.shape(call.q)[1], view.shape(k_base)[1]
    if not isinstance(heads, sympy.Integer) or not isinstance(shared, sympy.Integer) or heads % shared:
        return Refusal(place, "attention", Reason.UNSUPPORTED_SHAPE, f"{heads} heads over {shared}")
    site = Attention(
        call.node,
        call.q,
        call.k,
        call.v,
        call.mask,
        call.scale,
        is_causal,
        call.dropout_p,
        int(heads) // int(shared),
        k_base,
        v_base,
        call.softcap,
    )
    return Pathway(
        kind="attention",
        place=place,
        site=site,
        nodes=view.in_order(call.nodes),
        inputs=view.inputs_of(call.nodes),
        output=call.node,
        weights=(),
        units=int(heads),
        cost=attention_cost(view, call.q, k_base, v_base),
        bypass=Bypass.ZERO,
    )


def _unfit(view: GraphView, call: Eager, place: str) -> Refusal | None:
    operands = (call.q, call.k, call.v)
    if (
        len({tensor.dtype for node in (*operands, call.node) if (tensor := view.tensor(node)) is not None})
        != 1
    ):
        return Refusal(place, "attention", Reason.UNSUPPORTED_DTYPE, "it is cast on the way")
    inside = set(call.nodes)
    outside = (user for node in inside - {call.node} for user in node.users if user not in inside)
    reader = next(outside, None)
    if reader is not None:
        return Refusal(place, "attention", Reason.USED_ELSEWHERE, f"its weights are read by {reader.name}")
    first = view.in_order(call.nodes)[0]
    writers = (view.written_between(operand, first, call.node) for operand in operands)
    writer = next((writer for writer in writers if writer is not None), None)
    return Refusal(place, "attention", Reason.WRITTEN_BETWEEN, writer.name) if writer is not None else None


def _unrepeated(view: GraphView, value: fx.Node, call: fx.Node) -> fx.Node:
    """The base of repeated heads, unless it is overwritten between the copy and the call."""
    base = through_repeated_heads(view, value)
    return value if view.written_between(base, value, call) is not None else base


def through_repeated_heads(view: GraphView, node: fx.Node) -> fx.Node:
    """[B, Hkv, S, D] where `node` [B, H, S, D] repeats heads (unsqueeze, expand, reshape), else `node`."""
    if not is_method(node, "reshape", "view", "flatten") or len(view.shape(node)) != 4:
        return node
    expanded = node.args[0]
    unsqueezed = expanded.args[0] if is_method(expanded, "expand") and isinstance(expanded, fx.Node) else None
    base = unsqueezed.args[0] if isinstance(unsqueezed, fx.Node) and unsqueezed.args else None
    if not isinstance(base, fx.Node) or not isinstance(expanded, fx.Node) or view.tensor(base) is None:
        return node
    shape = view.shape(base)
    if len(shape) != 4 or len(view.shape(unsqueezed)) != 5 or len(view.shape(expanded)) != 5:
        return node
    heads, repeats = view.shape(expanded)[1:3]
    batch, _, length, depth = shape
    fits = view.shape(unsqueezed) == (batch, heads, 1, length, depth)
    whole = view.shape(node) == (batch, heads * repeats, length, depth)
    return base if fits and whole and shape[1] == heads else node


def _place(view: GraphView, q: fx.Node) -> str | None:
    """Name of the weight that makes the queries: the nearest linear above `q`."""
    seen, front = {q}, [q]
    while front:
        nearest = max(front, key=view.order.__getitem__)
        linear = read_linear(view, nearest)
        if isinstance(linear, Linear):
            return linear.fqn
        front.remove(nearest)
        front += [source for source in nearest.all_input_nodes if source not in seen]
        seen.update(front)
    return None
