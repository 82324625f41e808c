"""The gated ops of a graph as calls that can be made by themselves, with the model's own weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from srrc.passes.rows import size_of
from srrc.runtime.break_even import GatedCall, random_input
from srrc.runtime.gates import Gate


def gated_calls(
    gm: fx.GraphModule,
    gates: Sequence[Gate],
    weights: Mapping[str, torch.Tensor],
    sizes: Mapping[sympy.Symbol, int],
) -> list[GatedCall]:
    """One call a gated op. weights: by placeholder name; sizes: of the graph's symbols, where not as captured."""
    calls = []
    for node in gm.graph.nodes:
        if not str(node.target).startswith("srr.") or not _records(gm, node):
            continue
        own = [gate for gate in gates if any(_within(gate.record, record) for record in _records(gm, node))]
        arguments = fx.map_arg(node.args, lambda n: _value(gm, n, weights, sizes))
        calls.append(GatedCall(_bind(node.target, arguments), own, _shape(node.target, arguments)))
    return calls


def _bind(op: Any, arguments: Any) -> Any:
    def run() -> object:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return run


def _shape(op: Any, arguments: Any) -> str:
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    return f"{op} {[(tuple(t.shape), tuple(t.stride()), t.dtype) for t in tensors]}"


def _records(gm: fx.GraphModule, node: fx.Node) -> list[torch.Tensor]:
    """The gate records that an op reads."""
    held = [n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target).endswith("_record")]
    return [getattr(gm, str(n.target)) for n in held]


def _within(row: torch.Tensor, records: torch.Tensor) -> bool:
    return row.untyped_storage().data_ptr() == records.untyped_storage().data_ptr()


def _value(
    gm: fx.GraphModule, node: fx.Node, weights: Mapping[str, torch.Tensor], sizes: Mapping[sympy.Symbol, int]
) -> Any:
    """The tensor itself for a weight or a gate's tensor, a view of one as the view, else a random input."""
    if node.name in weights:
        return weights[node.name].detach()
    if node.op == "get_attr":
        return getattr(gm, str(node.target))
    if (
        callable(node.target)
        and str(node.target).startswith("aten.")
        and all(n.name in weights for n in node.all_input_nodes)
    ):
        return node.target(*fx.map_arg(node.args, lambda n: _value(gm, n, weights, sizes)))
    value = node.meta["example_value"]
    shape = [size_of(size, sizes) or 1 for size in value.shape]
    return random_input(shape, value.dtype, seed=len(node.name))
