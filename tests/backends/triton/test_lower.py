"""Gated graphs of the zoo's families lowered to kernels, under Triton's interpreter, against the ops' references."""

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree

from srrc.backends.triton.lower import LOWERED, LowerTriton
from srrc.backends.triton.worth import Part, Took
from srrc.control.gate_time import GateTime
from srrc.models_zoo import families
from srrc.ops import activation as activations
from srrc.ops.coarse_copy import CoarseCopy, coarse_copy
from srrc.ops.vocab_head import rotate
from srrc.passes.gating.neuron import skips_up_rows
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import InsertGates
from srrc.passes.pack_weights import gated_linears, pack_input_major
from srrc.pathways.neuron import Mlp
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import reset_counters

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

ROWS = 4
LEFT = ("resnet", "vit", "mixtral")  # nothing that is gated sees so few rows


def middle(score: Tensor) -> float:
    """A threshold halfway between two scores [rows, units] in the middle of all."""
    ordered = score.flatten().sort().values
    return float(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean())


class Halving(fx.Interpreter):
    """Runs a gated graph, and sets each gate to drop half of the units that it sees, before it does."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.srr.channel_linear.default:
            x, _, _, norm, gate, *_ = args
            gate[0] = middle(x.abs() * norm)
        elif target is torch.ops.srr.vocab_head.default:
            x, rotation, mean, norm, gate = args[0], args[3], args[4], args[8], args[9]
            gate[0] = middle(rotate(x.reshape(-1, x.shape[-1]), rotation, mean).abs() * norm)
        elif target is torch.ops.srr.neuron_mlp.default:
            self._mlp(*args)
        return super().call_function(target, args, kwargs)

    def _mlp(
        self,
        x: Tensor,
        gate: Tensor | None,
        gate_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        activation: str,
        input_norm: Tensor,
        neuron_norm: Tensor,
        down_norm: Tensor,
        gates: Tensor,
        *rest: Any,
    ) -> None:
        act = activations.lookup(activation).forward
        whole_up = rest[-1]
        gates[0, 0] = middle(x.abs() * input_norm)
        rows = torch.where((x.abs() * input_norm > gates[0, 0]).flatten(0, -2).any(0), x, 0.0)
        if gate is None:
            hidden = act(F.linear(rows, up, up_bias))
        else:
            acted = act(F.linear(rows, gate, gate_bias))
            hidden = acted * F.linear(x if whole_up else rows, up, up_bias)
            if whole_up:
                gates[1, 0] = 0.5 * middle(acted.abs() * neuron_norm)
        gates[2, 0] = middle(hidden.abs() * down_norm)


def source_of(captured: Any, covers: Callable[[str], bool]) -> GateSource:
    weights = {
        node.name: value
        for node, value in zip(captured.gm.graph.find_nodes(op="placeholder"), captured.inputs, strict=True)
        if node.name in captured.context.fqns
    }
    return GateSource(covers, weights)


def lay_out(captured: Any, source: GateSource) -> None:
    """Lays weights out as `PackWeights` does, which needs Dynamo's frame."""
    captured.find()
    linears = gated_linears(captured.context.pathways, source)
    for node in [linear.weight for linear in linears if not linear.transposed]:
        if source.weights[node.name].is_contiguous() and node.meta["example_value"].dim() == 2:
            pack_input_major(source.weights[node.name])


def gated_graph(capture: Any, name: str, covers: Callable[[str], bool]) -> Any:
    """(captured, its graph with gates) of a tiny model at a call of few rows."""
    tiny = families.tiny(name)
    inputs = tiny.inputs(1, ROWS)
    first, *_ = capture(tiny.model, **inputs)
    lay_out(first, source_of(first, covers))
    captured, *_ = capture(tiny.model, **inputs)
    source = source_of(captured, covers)
    gm = captured.find()
    gating = InsertGates(source, frozenset({"channel", "neuron", "vocab"}), captured_mode(gm))
    gm = gating(gm, captured.context)
    gm.recompile()
    return captured, gm


def captured_mode(gm: fx.GraphModule) -> Any:
    return next(n.meta["example_value"] for n in gm.graph.nodes if n.op == "placeholder" and "example_value" in n.meta
                and isinstance(n.meta["example_value"], Tensor)).fake_mode  # fmt: skip


@pytest.mark.parametrize("neurons", [True, False])
@pytest.mark.parametrize("name", [name for name in families.names() if name not in LEFT])
def test_kernels_compute_what_the_references_do(capture: Any, name: str, neurons: bool) -> None:
    captured, gm = gated_graph(capture, name, lambda gate: neurons or not gate.endswith("/neuron"))
    gates = captured.context.gates
    assert gates
    with torch.no_grad():
        truth = Halving(gm).run(*captured.arguments())
        told = [gate.counters.tolist() for gate in gates]
        dropped = [1 - kept / offered for offered, kept, *_ in told if offered]
        assert max(dropped) > 0.1
        reset_counters(gates)
        refused: list[Refusal] = []
        before = Counter(str(node.target) for node in gm.graph.nodes)
        LowerTriton(refused.append)(gm, captured.context)
        gm.recompile()
        after = Counter(str(node.target) for node in gm.graph.nodes)
        found = fx.Interpreter(gm).run(*captured.arguments())
    assert not refused
    for op in ("channel_linear", "neuron_mlp", "vocab_head"):
        assert after[f"srr_triton.{op}.default"] == before[f"srr.{op}.default"]
    torch.testing.assert_close(_pytree.tree_leaves(found), _pytree.tree_leaves(truth), rtol=1e-3, atol=1e-4)
    for gate, record in zip(gates, told, strict=True):
        if gate.id.endswith("/neuron") and not neurons:
            continue  # it is not asked
        assert gate.counters.tolist() == record, gate.id


def test_what_no_kernel_takes_is_dense_and_says_why(capture: Any) -> None:
    captured, gm = gated_graph(capture, "llama", lambda gate: not gate.startswith("vocab"))
    calls = [node for node in gm.graph.nodes if str(node.target).startswith("srr.")]
    channel = next(node for node in calls if "channel" in str(node.target))
    mlp = next(node for node in calls if "mlp" in str(node.target))
    before = len(captured.context.gates)
    with torch.no_grad():
        Halving(gm).run(*captured.arguments())
    channel.args[0].meta["example_value"] = channel.args[0].meta["example_value"].double()
    mlp.args = (*mlp.args[:7], "mish", *mlp.args[8:])
    refused: list[Refusal] = []
    LowerTriton(refused.append)(gm, captured.context)
    assert {(r.kind, r.reason) for r in refused} == {("kernel", Reason.NO_KERNEL)}
    details = {r.place: r.detail for r in refused}
    assert any(place.startswith("channel:") and "float64" in detail for place, detail in details.items())
    assert any(place.startswith("neuron:") and "mish" in detail for place, detail in details.items())
    assert channel.target is not mlp.target
    assert not any(str(node.target).startswith("srr.") for node in calls)
    assert sum(str(node.target).startswith("srr_triton.") for node in calls) == len(calls) - len(refused)
    # The dense call has the op's own weights, and none of its gates.
    assert not any(each.op == "get_attr" for each in (*channel.all_input_nodes, *mlp.all_input_nodes))
    gone = [r for r in captured.context.refusals if r.reason is Reason.NO_KERNEL]
    assert len(captured.context.gates) == before - len(gone)
    assert len(gone) > len(refused)


@pytest.mark.parametrize("size", [9, 0])
def test_rows_that_no_kernel_takes(size: int) -> None:
    call = LOWERED[torch.ops.srr.channel_linear.default]
    why = call.unfit(torch.zeros(size, 4), [torch.zeros(4, 4)])
    assert why == f"{size} rows"


def test_sizes_that_only_a_run_tells_are_not_taken(capture: Any) -> None:
    (captured,) = capture(torch.nn.Linear(4, 4), torch.zeros(3, 4), dynamic=True)
    values = [node.meta["example_value"] for node in captured.gm.graph.find_nodes(op="placeholder")]
    x = next(v for v in values if isinstance(v, Tensor) and any(isinstance(n, torch.SymInt) for n in v.shape))
    why = LOWERED[torch.ops.srr.channel_linear.default].unfit(x, [torch.zeros(4, 4)])
    assert why is not None
    assert "known only when it runs" in why


def test_what_does_not_pay_is_dense_again(capture: Any) -> None:
    captured, gm = gated_graph(capture, "gpt2", lambda gate: True)
    gates = [gate.id for gate in captured.context.gates]
    asked: list[Sequence[Part]] = []

    def slow(parts: Sequence[Part]) -> list[Took]:
        asked.append(parts)
        return [Took(part, 3.0, 1.0) for part in parts]

    times: dict[str, GateTime] = {}
    with torch.no_grad():
        Halving(gm).run(*captured.arguments())
        LowerTriton(pytest.fail, slow, times)(gm, captured.context)
        gm.recompile()
        found = fx.Interpreter(gm).run(*captured.arguments())
        truth = captured.gm(*captured.arguments())
    torch.testing.assert_close(_pytree.tree_leaves(found), _pytree.tree_leaves(truth))
    assert captured.context.gates == []
    refused = {r.place for r in captured.context.refusals if r.reason is Reason.MEASURED_SLOWER}
    assert refused == {gate.split(":", 1)[1] for gate in gates}
    assert not any(str(node.target).startswith("srr") for node in gm.graph.nodes)
    assert not any(node.op == "get_attr" and not node.users for node in gm.graph.nodes)
    kinds = {tuple(part.kind for part in parts) for parts in asked}
    assert kinds == {("channel",), ("channel", "channel"), ("head",)}
    assert not times


def test_where_no_kernel_runs_it_is_said_once(capture: Any) -> None:
    """It would look as if sparsity did not pay here. Compilers tell the names of their files, so details differ."""
    captured, gm = gated_graph(capture, "llama", lambda gate: True)
    gates = [gate.id for gate in captured.context.gates]
    ops = sum(node.target in LOWERED for node in gm.graph.nodes)
    asked: list[Sequence[Part]] = []

    def broken(parts: Sequence[Part]) -> list[Took]:
        asked.append(parts)
        return [Took(part, math.inf, 1.0, f"PTXAS error: /tmp/{len(asked)}.ptx") for part in parts]

    refused: list[Refusal] = []
    LowerTriton(refused.append, broken)(gm, captured.context)
    assert len(asked) == len({tuple(parts) for parts in asked}) > 1
    [told] = refused
    assert (told.reason, told.detail) == (Reason.NO_KERNEL, "PTXAS error: /tmp/1.ptx")
    place, others = told.place.split(" ", 1)
    assert place in gates
    assert others == f"(and {ops - 1} more)"
    assert captured.context.gates == []
    reasons = {r.place: r.reason for r in captured.context.refusals if r.detail.startswith("PTXAS")}
    assert reasons == {gate.split(":", 1)[1]: Reason.NO_KERNEL for gate in gates}
    assert not any(str(node.target).startswith("srr") for node in gm.graph.nodes)


def test_what_many_ops_are_refused_for_is_said_once(capture: Any) -> None:
    captured, gm = gated_graph(capture, "llama", lambda gate: True)
    calls = [node for node in gm.graph.nodes if "channel_linear" in str(node.target)]
    for node in calls:
        node.args[0].meta["example_value"] = node.args[0].meta["example_value"].double()
    captured.context.refusals += [
        Refusal(name, "channel", Reason.UNKNOWN_ROWS) for name in ("one", "two", "three")
    ]
    refused: list[Refusal] = []
    LowerTriton(refused.append)(gm, captured.context)
    unknown, double = refused
    assert (unknown.place, unknown.reason) == ("one (and 2 more)", Reason.UNKNOWN_ROWS)
    assert "dynamic=False" in unknown.detail
    assert double.place.endswith(f"(and {len(calls) - 1} more)")
    assert "float64" in double.detail


def test_the_coarse_copy_of_a_refused_head_goes(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pathways that were found hold the graph, which holds the module."""
    made: list[weakref.ref[Tensor]] = []

    def noted(*args: Any, **options: Any) -> CoarseCopy:
        copy = coarse_copy(*args, **options)
        made.append(weakref.ref(copy.coarse))
        return copy

    monkeypatch.setattr("srrc.passes.gating.vocab.coarse_copy", noted)
    captured, gm = gated_graph(capture, "llama", lambda gate: True)
    [copy] = made
    assert copy() is not None
    LowerTriton(pytest.fail, lambda parts: [Took(part, 3.0, 1.0) for part in parts])(gm, captured.context)
    gc.collect()
    assert copy() is None
    assert not [*gm.buffers(recurse=False)]
    with torch.no_grad():
        gm.recompile()
        fx.Interpreter(gm).run(*captured.arguments())


def test_gates_that_pay_say_how_much(capture: Any) -> None:
    captured, gm = gated_graph(capture, "llama", lambda gate: True)
    times: dict[str, GateTime] = {}

    def quick(parts: Sequence[Part]) -> list[Took]:
        return [Took(part, 1.0, 3.0) for part in parts]

    LowerTriton(pytest.fail, quick, times)(gm, captured.context)
    silent = {gate.id for gate in captured.context.gates if not gate.flops}
    assert set(times) == {gate.id for gate in captured.context.gates} - silent
    assert len(times) > len(silent)
    for time in times.values():
        assert 0 < time.saved(0.25) < time.saved(0.5) < time.opened
        assert time.break_even == 0


def test_the_neuron_gate_decides_how_up_is_laid_out(capture: Any) -> None:
    captured, _ = gated_graph(capture, "llama", lambda gate: True)
    source = source_of(captured, lambda gate: True)
    mlps = [pathway for pathway in captured.context.pathways if pathway.kind == "neuron"]
    assert mlps
    for pathway in mlps:
        assert skips_up_rows(pathway, source)
        assert isinstance(pathway.site, Mlp)
        assert source.weights[pathway.site.up.weight.name].is_contiguous()
        assert not source.weights[pathway.site.gate.weight.name].is_contiguous()
