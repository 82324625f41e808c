"""Lowers what stays dense to srrc's own exact CPU operators, where they are faster than what Inductor would call.

With a few rows (decoding) a linear is bound by the bytes of its weight, and per-call overhead counts: linears that
share an input become one call, an MLP becomes one call, attention reads the cache without expanding or masking it.
With many queries attention leaves out the keys that a mask hides from all of them, such as the empty rest of a cache.
With many rows Inductor's GEMM is as fast, except in bf16 on a machine whose CPU has no bf16 arithmetic.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.passes.context import Context
from srrc.passes.emit import emit, value_of
from srrc.passes.linear_arguments import bias_of, mlp_arguments, replace, split_list, weight_of
from srrc.passes.rows import FEW_ROWS, has_few_rows, size_of
from srrc.pathways.attention import Attention
from srrc.pathways.base import Linear
from srrc.pathways.channel import ChannelGroup
from srrc.pathways.neuron import Mlp

NATIVE_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class LowerDense:
    """Replaces MLPs, linears and attention by `srr::dense_mlp`, `srr::dense_linear`, `srr::decode_attention` and
    `srr::prefill_attention`.

    fake_mode: Dynamo's, for the new nodes' values.
    """

    fake_mode: FakeTensorMode
    name: str = "lower_dense"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place."""
        alive = set(gm.graph.nodes)
        for site in (pathway.site for pathway in context.pathways if pathway.kind == "neuron"):
            if isinstance(site, Mlp) and alive.issuperset(site.nodes) and wants_native(site.x, context):
                self._mlp(gm, site)
                alive = set(gm.graph.nodes)
        for site in (pathway.site for pathway in context.pathways if pathway.kind == "channel"):
            if isinstance(site, ChannelGroup) and wants_native(site.x, context):
                for linears in _apart(site.linears, context):
                    living = tuple(linear for linear in linears if linear.node in alive)
                    if living:
                        self._linears(gm, site.x, living)
        for site in (pathway.site for pathway in context.pathways if pathway.kind == "attention"):
            if isinstance(site, Attention) and site.node in alive:
                self._attention(gm, site, context)
        return gm

    def _mlp(self, gm: fx.GraphModule, site: Mlp) -> None:
        with gm.graph.inserting_before(site.down.node):
            args = mlp_arguments(gm.graph, site, self.fake_mode)
            node = emit(gm.graph, torch.ops.srr.dense_mlp.default, args, self.fake_mode)
        replace(gm.graph, site.nodes, site.down.node, node)

    def _linears(self, gm: fx.GraphModule, x: fx.Node, linears: tuple[Linear, ...]) -> None:
        with gm.graph.inserting_before(linears[0].node):
            weights = [weight_of(gm.graph, linear, self.fake_mode) for linear in linears]
            biases = [bias_of(gm.graph, linear, self.fake_mode) for linear in linears]
            results = emit(gm.graph, torch.ops.srr.dense_linear.default, (x, weights, biases), self.fake_mode)
            split_list(gm.graph, results, linears)

    def _attention(self, gm: fx.GraphModule, site: Attention, context: Context) -> None:
        queries = size_of(value_of(site.q).shape[-2], context.sizes) if _attends_natively(site) else None
        if queries is None:
            return
        scale = site.scale if site.scale is not None else 1.0 / math.sqrt(int(value_of(site.q).shape[-1]))
        args: tuple[Any, ...]
        if queries <= FEW_ROWS:
            op = torch.ops.srr.decode_attention.default
            args = (site.q, site.k_base, site.v_base, site.mask, scale, site.is_causal)
        elif site.mask is not None and not site.is_causal:
            op = torch.ops.srr.prefill_attention.default
            args = (site.q, site.k_base, site.v_base, site.mask, scale)
        else:
            return  # torch's own skips nothing that it need not compute
        with gm.graph.inserting_before(site.node):
            node = emit(gm.graph, op, args, self.fake_mode)
        replace(gm.graph, (site.node,), site.node, node)


def _apart(linears: tuple[Linear, ...], context: Context) -> list[tuple[Linear, ...]]:
    """Linears in one call for each gated branch they belong to: one that is left out takes no other along."""
    gated = {gate.id for gate in context.gates}
    branches = [p for p in context.pathways if p.kind == "residual" and f"residual:{p.place}" in gated]
    groups: dict[tuple[str, ...], list[Linear]] = {}
    for linear in linears:
        groups.setdefault(tuple(p.place for p in branches if linear.node in p.nodes), []).append(linear)
    return [tuple(group) for group in groups.values()]


def _attends_natively(site: Attention) -> bool:
    """True for attention in a form that srrc's operators take."""
    q, k = value_of(site.q), value_of(site.k_base)
    if q.dim() != 4 or k.dim() != 4 or q.device.type != "cpu" or q.dtype not in NATIVE_DTYPES:
        return False
    if {value_of(node).dtype for node in (site.k_base, site.v_base, site.node)} != {q.dtype}:
        return False  # autocast casts what the graph does not show
    if site.softcap is not None or site.dropout_p != 0.0:
        return False
    return isinstance(q.shape[-1], int) and not (
        isinstance(site.scale, fx.Node) or isinstance(site.is_causal, fx.Node)
    )


def wants_native(x: fx.Node, context: Context) -> bool:
    """True where srrc's operator beats Inductor's for input `x` [..., K]: few rows, or bf16 without bf16 arithmetic."""
    value = value_of(x)
    if value.device.type != "cpu" or value.dtype not in NATIVE_DTYPES:
        return False
    return has_few_rows(x, context.sizes) or (
        value.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    )
