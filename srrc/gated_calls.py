"""The gated ops of a graph as calls that can be made by themselves, with the model's own weights."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from srrc.ops.gated_region import gated_region
from srrc.passes.partition import Region
from srrc.passes.rows import size_of
from srrc.runtime.driver import runs
from srrc.runtime.gate_times import BranchCall, GatedCall, random_input
from srrc.runtime.gates import OPEN, Gate

_LAYER_GATE = torch.ops.srr.layer_gate.default


@dataclass(frozen=True)
class Values:
    """What a graph's values can be stood for by, outside of a run.

    weights: by placeholder name; sizes: of the graph's symbols, where not as captured
    """

    gm: fx.GraphModule
    weights: Mapping[str, torch.Tensor]
    sizes: Mapping[sympy.Symbol, int]

    def of(self, node: fx.Node, outer: Mapping[fx.Node, fx.Node]) -> Any:
        """The tensor itself for a weight or a gate's tensor, a view of one as the view, a size as a number, else a
        random input with the strides that it would have. outer: what stands for a subgraph's inputs in the graph.
        """
        node = outer.get(node, node)
        if node.name in self.weights:
            return self.weights[node.name].detach()
        if node.op == "get_attr":
            return getattr(self.gm, str(node.target))
        if (
            callable(node.target)
            and str(node.target).startswith("aten.")
            and all(outer.get(n, n).name in self.weights for n in node.all_input_nodes)
        ):
            return node.target(*fx.map_arg(node.args, lambda n: self.of(n, outer)))
        value = node.meta["example_value"]
        if not isinstance(value, torch.Tensor):
            return size_of(value, self.sizes)
        shape = [size_of(size, self.sizes) or 1 for size in value.shape]
        strides = [size_of(stride, self.sizes) or 0 for stride in value.stride()]
        extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        return _stand_in_values(extent, value.dtype, seed=len(node.name)).as_strided(shape, strides)


def _stand_in_values(extent: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal numbers; indices that are always in range; masks that leave nothing out."""
    if not dtype.is_floating_point:
        return torch.full((extent,), dtype is torch.bool, dtype=dtype)
    return random_input((extent,), dtype, seed)


def gated_calls(gates: Sequence[Gate], values: Values) -> list[GatedCall]:
    """One call an op that skips units of its own; those inside of gated regions, too."""
    calls = []
    for node, outer in _nodes(values.gm):
        records = _records(values.gm, [outer.get(n, n) for n in node.all_input_nodes])
        if not str(node.target).startswith("srr.") or not records or node.target is _LAYER_GATE:
            continue
        own = [gate for gate in gates if any(_within(gate.record, record) for record in records)]
        arguments = fx.map_arg(node.args, functools.partial(values.of, outer=outer))
        assert callable(node.target)
        calls.append(GatedCall(_bind(node.target, arguments), own, _shape(node.target, arguments)))
    return calls


def branch_calls(
    gates: Sequence[Gate], values: Values, regions: Sequence[tuple[Region, Callable[..., Any]]]
) -> list[BranchCall]:
    """One call a conditional region, with its gate. regions: each with what was compiled for it.

    Gates inside are open; all count into copies.
    """
    calls = []
    for region, run in regions:
        if region.condition is None:
            continue
        keep = region.condition.keep
        x, probe, record, counters = (_apart(values.of(node, {})) for node in keep.all_input_nodes)
        (gate,) = (gate for gate in gates if _within(gate.record, values.of(keep.all_input_nodes[2], {})))
        record[0] = 0.0  # it looks, and keeps
        inputs = [_stand_in(values, node) for node in region.inputs]
        decide = _bind(_decide, (x, probe, record, counters))
        calls.append(BranchCall(decide, _bind(run, inputs), gate, region.key))
    return calls


def _decide(*arguments: torch.Tensor) -> bool:
    return runs(_LAYER_GATE(*arguments))


def _stand_in(values: Values, node: fx.Node) -> Any:
    value = values.of(node, {})
    if node.op != "get_attr":
        return value
    value = _apart(value)
    if str(node.target).endswith("_record"):
        value.copy_(torch.tensor(OPEN, dtype=value.dtype))
    return value


def _apart(value: torch.Tensor) -> torch.Tensor:
    return value.clone(memory_format=torch.preserve_format)


def _nodes(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Mapping[fx.Node, fx.Node]]]:
    """The graph's nodes and those of its gated regions, with what stands for their placeholders in the graph."""
    for node in gm.graph.nodes:
        yield node, {}
        if node.target is gated_region:
            held = getattr(gm, str(node.args[1].target))
            outer = dict(zip(held.graph.find_nodes(op="placeholder"), node.args[3:], strict=True))
            yield from ((inner, outer) for inner in held.graph.nodes)


def _bind(function: Callable[..., object], arguments: Sequence[Any]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            return function(*arguments)

    return run


def _shape(op: Any, arguments: Any) -> str:
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    return f"{op} {[(tuple(t.shape), tuple(t.stride()), t.dtype) for t in tensors]}"


def _records(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[torch.Tensor]:
    """The gate records among what an op reads."""
    held = [n for n in nodes if n.op == "get_attr" and str(n.target).endswith("_record")]
    return [getattr(gm, str(n.target)) for n in held]


def _within(row: torch.Tensor, records: torch.Tensor) -> bool:
    return row.untyped_storage().data_ptr() == records.untyped_storage().data_ptr()
