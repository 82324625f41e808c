"""Lowers gated ops to the operators of `ops/`, which Inductor sees through, kernels and all.

An operator has the arguments of the op that it stands for, so that a node only changes its target. What the kernels do
not take, and what takes them longer on this card than dense products, becomes those again, and loses its gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

import srrc.backends.triton.ops.neuron_mlp
import srrc.backends.triton.ops.vocab_head
import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.backends.triton import worth
from srrc.backends.triton.kernels.activate import KNOWN
from srrc.backends.triton.worth import Part, Took
from srrc.control.gate_time import GateTime
from srrc.ops import dense_linear, dense_mlp
from srrc.ops.gate import MAX_ROWS
from srrc.passes.context import Context
from srrc.passes.emit import value_of
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import Gate

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class LowerTriton:
    """Gives each gated op of few rows its kernels.

    refuse:  told of the ops that have none, and why: once for all that have the same reason
    measure: what an op's parts take on the card, None where that is not known
    times:   gate id -> what it takes and saves, filled for gates whose ops were measured
    """

    refuse: Callable[[Refusal], None]
    measure: Callable[[Sequence[Part]], Sequence[Took] | None] = lambda parts: None
    times: dict[str, GateTime] = field(default_factory=dict)
    name: str = "lower_triton"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place. Of gates that save nothing here, the ones of a dense op go, the others count nothing."""
        advice = "mark sizes static, or compile with dynamic=False"
        refused = [replace(r, detail=advice) for r in context.refusals if r.reason is Reason.UNKNOWN_ROWS]
        failed: list[Refusal] = []
        measure = cache(self.measure)  # equal ops fail alike, and a compiler takes its time for that
        for node in gm.graph.nodes:
            if node.target not in LOWERED:
                continue
            lowered = LOWERED[node.target]
            given = fx.map_arg(node.args, value_of)
            gates = _gates(gm, node, context)
            why = lowered.unfit(*given)
            if why is not None:
                refused.append(Refusal(gates[0][1].id, "kernel", Reason.NO_KERNEL, why))
                _make_dense(node, lowered, gates, context, Reason.NO_KERNEL, why)
                continue
            parts = lowered.parts(*given)
            took = measure(tuple(parts))
            why = next((each.failed for each in took or () if each.failed), None)
            if why is not None:
                failed.append(Refusal(gates[0][1].id, "kernel", Reason.NO_KERNEL, why))
                _make_dense(node, lowered, gates, context, Reason.NO_KERNEL, why)
            elif worth.worth_it(took):
                node.target = lowered.target
                _silence({part.gate for part in parts if part.kind == "dense"}, gates, context)
                self._time(took or (), gates)
            else:
                _make_dense(node, lowered, gates, context, Reason.MEASURED_SLOWER, "")
        _drop_what_nothing_reads(gm)
        for detail in dict.fromkeys(each.detail for each in refused):
            self._tell([each for each in refused if each.detail == detail])
        self._tell(failed)  # whatever the details: compilers tell the names of their files
        return gm

    def _tell(self, refused: Sequence[Refusal]) -> None:
        if refused:
            first, others = refused[0], len(refused) - 1
            self.refuse(replace(first, place=f"{first.place} (and {others} more)") if others else first)

    def _time(self, took: Sequence[Took], gates: Sequence[tuple[int, Gate]]) -> None:
        for row, gate in gates:
            time = worth.gate_time([each for each in took if each.part.gate == row], gate.rows)
            if time is not None:
                self.times[gate.id] = time


def _drop_what_nothing_reads(gm: fx.GraphModule) -> None:
    """What a refused op held is not kept for it: a head's coarse copy is as large as half of the head."""
    for node in gm.graph.find_nodes(op="get_attr"):
        if not node.users:
            gm.graph.erase_node(node)
    read = {node.target for node in gm.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in gm.named_buffers(recurse=False) if name not in read]:
        delattr(gm, name)  # the pathways that were found hold the graph, and it holds the module


def _silence(rows: set[int], gates: Sequence[tuple[int, Gate]], context: Context) -> None:
    """Gates of these rows skip nothing here."""
    silent = {id(gate): gate.without_savings() for row, gate in gates if row in rows}
    context.gates[:] = [silent.get(id(gate), gate) for gate in context.gates]


def _make_dense(
    node: fx.Node,
    lowered: "Lowered",
    gates: Sequence[tuple[int, Gate]],
    context: Context,
    reason: Reason,
    detail: str,
) -> None:
    node.target = lowered.without_gates
    node.args = tuple(node.args[at] for at in lowered.kept)
    context.refusals += [_refused(gate, reason, detail) for _, gate in gates]
    left = {id(gate) for _, gate in gates}
    context.gates[:] = [gate for gate in context.gates if id(gate) not in left]


def _refused(gate: Gate, reason: Reason, detail: str) -> Refusal:
    kind, place = gate.id.split(":", 1)
    return Refusal(place, kind, reason, detail)


def _gates(gm: fx.GraphModule, node: fx.Node, context: Context) -> list[tuple[int, Gate]]:
    """An op's gates, each with its row in the op's records, which they share with it."""
    held = [getattr(gm, str(each.target)) for each in node.all_input_nodes if each.op == "get_attr"]
    memory = {tensor.untyped_storage()._cdata for tensor in held}
    own = (gate for gate in context.gates if gate.record.untyped_storage()._cdata in memory)
    return [(gate.record.storage_offset() // 2, gate) for gate in own]


def _rows(x: Tensor) -> str | None:
    """Why the kernels do not take rows like these."""
    if x.dtype not in DTYPES:
        return f"rows of {x.dtype}"
    sizes = x.shape
    if not all(isinstance(size, int) for size in sizes):
        return "sizes that are known only when it runs"
    rows = x.numel() // max(1, x.shape[-1])
    return None if 1 <= rows <= MAX_ROWS else f"{rows} rows"


def _weight(x: Tensor, weight: Tensor | None, *, by_row: bool = False) -> str | None:
    """Why the kernels do not take a weight [N, K] with rows like x."""
    if weight is None:
        return None
    if weight.dtype != x.dtype:
        return f"a weight of {weight.dtype} with rows of {x.dtype}"
    return f"rows of a weight with strides {weight.stride()}" if by_row and weight.stride(1) != 1 else None


def _first(*reasons: str | None) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class Lowered:
    """What stands for an op, given a call's arguments as fake tensors.

    unfit: why the kernels do not take the call, or None
    parts: what it is made of, to be measured
    without_gates: what computes it densely, from its arguments at the places of `kept`
    """

    target: torch._ops.OpOverload
    unfit: Callable[..., str | None]
    parts: Callable[..., list[Part]]
    without_gates: Callable[..., Tensor]
    kept: Sequence[int]


def _channel_linear(x: Tensor, weights: list[Tensor], *rest: Any) -> str | None:
    return _first(_rows(x), *(_weight(x, weight) for weight in weights))


def _linears(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
    return torch.cat(dense_linear.reference(x, weights, biases), -1)


def _neuron_mlp(x: Tensor, *given: Any) -> str | None:
    gate, _, up, _, down, _, activation = given[:7]
    return _first(
        _rows(x),
        None if activation in KNOWN else f"the activation {activation!r}",
        _weight(x, gate),
        _weight(x, up, by_row=worth.reads_rows_of_up(given)),
        _weight(x, down),
    )


def _vocab_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rotation: Tensor,
    mean: Tensor,
    coarse: Tensor,
    scale: Tensor | None,
    *rest: Any,
) -> str | None:
    fits = coarse.stride(0) == 1 and (coarse.dtype == torch.int8) == (scale is not None)
    known = fits and coarse.dtype in {torch.int8, torch.float32}
    return _first(
        _rows(x), _weight(x, weight, by_row=True), None if known else f"a coarse copy of {coarse.dtype}"
    )


LOWERED = {
    torch.ops.srr.channel_linear.default: Lowered(
        torch.ops.srr_triton.channel_linear.default,
        _channel_linear,
        worth.channel_linear,
        _linears,
        range(3),
    ),
    torch.ops.srr.neuron_mlp.default: Lowered(
        torch.ops.srr_triton.neuron_mlp.default,
        _neuron_mlp,
        worth.neuron_mlp,
        dense_mlp.reference,
        range(8),
    ),
    torch.ops.srr.vocab_head.default: Lowered(
        torch.ops.srr_triton.vocab_head.default, _vocab_head, worth.head, F.linear, range(3)
    ),
}
"""By the op that is lowered."""
