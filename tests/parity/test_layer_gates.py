"""Layer gates in compiled models: an open one changes nothing, a closed one leaves its branch out, its cache full."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import srrc
from srrc import fingerprint
from srrc.models_zoo import families
from srrc.profile import GateCost, GateProfile, Profile
from srrc.report import compiled_graphs
from srrc.runtime import fallback

ATTENTION, MLP = "model.layers.{}.input_layernorm.weight", "model.layers.{}.post_attention_layernorm.weight"


def profile_of(model: nn.Module, places: list[str], others: tuple[str, ...] = ()) -> Profile:
    """A profile with a gate on each branch of these places, whose probes are drawn by lot, and on `others`."""
    fractions = torch.tensor([0.0, 0.5, 0.9])

    def gate(name: str, units: int) -> GateProfile:
        drift = torch.tensor([0.0, 1e-3, 1e-2])
        cost = GateCost(units, 6e4 / units, 1.2e5 / units)
        zeros = torch.zeros(3)
        return GateProfile(name, torch.linspace(0, 4, 11), fractions, drift, zeros, zeros, cost)

    generator = torch.Generator().manual_seed(0)
    names = [f"residual:{place}" for place in places]
    probes = {f"{name}/probe": 0.1 * torch.randn(65, generator=generator) for name in names}
    gates = {name: gate(name, 1) for name in names} | {name: gate(name, 64) for name in others}
    return Profile(gates, fingerprint.take(model.named_parameters()), vectors=probes)


class Model:
    """A family's model with layer gates, compiled, beside its eager twin."""

    def __init__(self, name: str, places: list[str], others: tuple[str, ...] = (), **options: Any) -> None:
        torch._dynamo.reset()
        fallback._warned.clear()
        counters.clear()
        self.tiny = families.tiny(name)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.tiny.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.model: Any = self.tiny.model.eval()
        self.eager: Any = copy.deepcopy(self.model)
        self.profile = profile_of(self.model, places, others)
        self.model.compile(backend="srr", options={"profile": self.profile, "strict": True, **options})

    def close(self, *places: str) -> None:
        """Close the gates on these branches in every graph, open all others."""
        for graph in compiled_graphs(self.model):
            for gate in graph.gates:
                gate.record[0] = 1e30 if gate.id.split(":")[1] in places else -1.0

    def decode(self, model: Any, batch: int = 1, steps: int = 3) -> tuple[list[Tensor], Any]:
        """Logits of a prompt and of some steps after it, and the static cache that they filled."""
        from transformers import StaticCache

        tokens = self.tiny.inputs(batch, 4 + steps)["input_ids"]
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.no_grad():
            logits = [model(input_ids=tokens[:, :4], past_key_values=cache).logits]
            logits += [
                model(input_ids=tokens[:, at : at + 1], past_key_values=cache).logits
                for at in range(4, 4 + steps)
            ]
        return logits, cache


@contextmanager
def without(*modules: nn.Module) -> Iterator[None]:
    """The eager model without what these modules add to the stream."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    hooks = [module.register_forward_hook(zero) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def same_caches(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


@pytest.fixture(scope="module")
def llama() -> Model:
    found = Model("llama", [form.format(layer) for layer in range(2) for form in (ATTENTION, MLP)])
    found.decode(found.model)
    return found


def test_open_gates_give_eagers_logits_and_tokens(llama: Model) -> None:
    llama.close()
    (ours, cache), (theirs, expected) = llama.decode(llama.model), llama.decode(llama.eager)
    torch.testing.assert_close(ours, theirs)
    same_caches(cache, expected)
    for graph in compiled_graphs(llama.model):
        assert len(graph.gates) == 4
        assert graph.source.count("if runs(") == 4
        assert not [r for r in graph.refusals if r.kind == "region"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    with torch.no_grad():
        expected = llama.eager.generate(**llama.tiny.inputs(1, 4), **options)
        assert torch.equal(llama.model.generate(**llama.tiny.inputs(1, 4), **options), expected)
    assert srrc.stats(llama.model)["fallbacks"] == {}


@pytest.mark.parametrize(
    "left_out",
    [(ATTENTION.format(0),), (MLP.format(1),), (MLP.format(0), ATTENTION.format(1))],
    ids=["attention", "mlp", "two"],
)
def test_a_closed_gate_leaves_its_branch_out_and_fills_its_cache(
    left_out: tuple[str, ...], llama: Model
) -> None:
    layers = llama.eager.model.layers
    modules = [
        layer.self_attn if form is ATTENTION else layer.mlp
        for index, layer in enumerate(layers)
        for form in (ATTENTION, MLP)
        if form.format(index) in left_out
    ]
    assert len(modules) == len(left_out)
    before = counters["stats"]["unique_graphs"]
    srrc.stats(llama.model, reset=True)
    llama.close(*left_out)
    ours, cache = llama.decode(llama.model)
    dense, _ = llama.decode(llama.eager)
    with without(*modules):
        theirs, expected = llama.decode(llama.eager)
    torch.testing.assert_close(ours, theirs)
    same_caches(cache, expected)
    assert cache.layers[1].keys[:, :, :7].abs().min() > 0
    assert not torch.allclose(ours[-1], dense[-1], atol=1e-2), (
        "the branch matters so little that nothing is tested"
    )
    counted = srrc.stats(llama.model)
    for gate, found in counted["gates"].items():
        closed = gate.split(":")[1] in left_out
        assert (found["taken"], found["offered"]) == (0 if closed else 7, 7)
    assert counted["flops_executed"] < counted["flops_dense"]
    assert counters["stats"]["unique_graphs"] == before, "closing a gate recompiled"


def test_the_gates_are_explained_and_move_with_the_budget(llama: Model) -> None:
    before = counters["stats"]["unique_graphs"]
    srrc.set_budget(llama.model, 0.5)
    graph = compiled_graphs(llama.model)[-1]
    assert graph.plan is not None
    closed = {gate.id for gate in graph.gates if gate.record[0] > 0}
    assert closed == set(graph.plan.fractions) - graph.plan.reverted
    assert closed | graph.plan.reverted
    rows = [row for row in srrc.explain(llama.model).rows if row.kind == "residual"]
    assert any("gated over" in row.decision or "measured slower" in row.decision for row in rows)
    for gate in graph.gates:
        assert 0 < graph.times[gate.id].break_even <= 1
    srrc.set_budget(llama.model, 1.0)
    assert all(gate.record[0] < 0 for gate in graph.gates)
    torch.testing.assert_close(llama.decode(llama.model)[0], llama.decode(llama.eager)[0])
    assert counters["stats"]["unique_graphs"] == before


def test_gates_inside_of_a_gated_branch_are_kept_and_measured() -> None:
    inner = tuple(f"neuron:model.layers.0.mlp.gate_proj.weight/{part}" for part in ("input", "down"))
    model = Model("llama", [MLP.format(0)], inner)
    torch.testing.assert_close(model.decode(model.model)[0], model.decode(model.eager)[0])
    graph = compiled_graphs(model.model)[-1]
    assert {*inner, f"residual:{MLP.format(0)}"} <= set(graph.times)
    down = next(gate for gate in graph.gates if gate.id == inner[1])
    counted = int(down.counters[0])
    assert counted > 0
    down.record[0] = 0.5
    routed, _ = model.decode(model.model)
    assert not torch.allclose(routed[-1], model.decode(model.eager)[0][-1])
    assert int(down.counters[0]) > counted
    counted = int(down.counters[0])
    model.close(MLP.format(0))
    ours, _ = model.decode(model.model)
    with without(model.eager.model.layers[0].mlp):
        torch.testing.assert_close(ours, model.decode(model.eager)[0])
    assert int(down.counters[0]) == counted, "the region ran"


def test_rows_of_a_batch_run_together() -> None:
    model = Model("llama", [MLP.format(1)])
    dense, _ = model.decode(model.eager, batch=2, steps=1)
    torch.testing.assert_close(model.decode(model.model, batch=2, steps=1)[0], dense)
    srrc.stats(model.model, reset=True)
    (probe,) = model.profile.vectors.values()
    scores: list[Tensor] = []

    def score(module: nn.Module, args: Any) -> None:
        from srrc.ops import layer_gate

        scores.append(layer_gate.score(args[0], probe).flatten())

    hook = model.eager.model.layers[1].post_attention_layernorm.register_forward_pre_hook(score)
    model.decode(model.eager, batch=2, steps=1)
    hook.remove()
    step = scores[-1]
    assert len(step) == 2
    for threshold, taken in ((float(step.mean()), 2), (1.01 * float(step.max()), 0)):
        srrc.stats(model.model, reset=True)
        model.close()
        graph = compiled_graphs(model.model)[-1]  # that of one token at a time
        graph.gates[0].record[0] = threshold
        ours, _ = model.decode(model.model, batch=2, steps=1)
        assert graph.gates[0].counters.tolist() == [2, taken, 0]
        assert torch.allclose(ours[-1], dense[1], atol=1e-5) == (taken == 2)


def test_parallel_branches_are_left_out_apart() -> None:
    forms = (
        "gpt_neox.layers.{}.input_layernorm.weight",
        "gpt_neox.layers.{}.post_attention_layernorm.weight",
    )
    model = Model("gpt-neox", [form.format(layer) for layer in range(2) for form in forms])
    torch.testing.assert_close(model.decode(model.model)[0], model.decode(model.eager)[0])
    assert compiled_graphs(model.model)[-1].source.count("if runs(") == 4
    for layer, module in enumerate(model.eager.gpt_neox.layers):
        for form, left_out in zip(forms, (module.attention, module.mlp), strict=True):
            model.close(form.format(layer))
            ours, cache = model.decode(model.model)
            with without(left_out):
                theirs, expected = model.decode(model.eager)
            torch.testing.assert_close(ours, theirs)
            same_caches(cache, expected)


def test_many_rows_run_dense(llama: Model) -> None:
    inputs = llama.tiny.inputs(2, 8)
    with torch.no_grad():
        llama.model(**inputs)
        llama.close(ATTENTION.format(0), MLP.format(0))
        torch.testing.assert_close(llama.model(**inputs).logits, llama.eager(**inputs).logits)
