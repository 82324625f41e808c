"""Gated models: open gates give eager's answers, closed ones what the reference ops give; weights never go stale."""

import contextlib
import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.utils import counters
from transformers import StaticCache

import srrc
from srrc import fingerprint
from srrc.errors import SrrWarning
from srrc.models_zoo import families
from srrc.ops import channel_linear, neuron_mlp
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import GATED, InsertGates
from srrc.profile import GateCost, GateProfile, Profile
from srrc.report import compiled_graphs
from srrc.runtime import fallback
from srrc.runtime.gates import reset_counters

FAMILIES = ("llama", "gpt2", "opt")
LEVELS_HERE = frozenset({"channel", "neuron"})


class Gated:
    """A family's model with a gate on everything, compiled; an eager twin; and the gated graph, interpreted."""

    def __init__(self, name: str, capture: Callable[..., Any], dtype: torch.dtype = torch.float32) -> None:
        tiny = families.tiny(name)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in tiny.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        self.tiny, self.model = tiny, tiny.model.to(dtype)
        self.eager = copy.deepcopy(self.model)
        self.inputs = tiny.inputs(1, 4)
        (self.graph,) = capture(self.eager, **self.inputs)
        self.gm = self.graph.find()
        pathways = [p for p in self.graph.context.pathways if p.kind in GATED and p.kind in LEVELS_HERE]
        gates = {gate: _profile(gate) for p in pathways for gate in GATED[p.kind][1](p)}
        self.profile = Profile(gates, fingerprint.take(self.model.named_parameters()))
        names = [node.name for node in self.gm.graph.find_nodes(op="placeholder")]
        values = dict(zip(names, self.graph.inputs, strict=True))
        mode = next(iter(self.gm.graph.nodes)).meta["example_value"].fake_mode
        source = GateSource(gates.__contains__, {name: values[name] for name in self.graph.context.fqns})
        InsertGates(source, LEVELS_HERE, mode)(self.gm, self.graph.context)
        fallback._warned.clear()
        torch._dynamo.reset()
        counters.clear()
        options = {"profile": self.profile, "levels": list(LEVELS_HERE)}
        self.model.compile(backend="srr", options=options)

    def __call__(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(**self.inputs).logits

    def expected(self) -> torch.Tensor:
        with torch.no_grad():
            return self.eager(**self.inputs).logits

    def close(self, threshold: float, min_kept: float = 0.0) -> None:
        """Set every gate of the compiled model, and of the interpreted graph, to one threshold."""
        for graph in compiled_graphs(self.model):
            _set(graph.gates, threshold, min_kept)

    def interpreted(
        self, threshold: float, min_kept: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, list[int]]]:
        """Logits and counters of the gated graph, run node by node with the reference ops."""
        _set(self.graph.context.gates, threshold, min_kept)
        reset_counters(self.graph.context.gates)
        references = {
            torch.ops.srr.channel_linear.default: channel_linear.reference,
            torch.ops.srr.neuron_mlp.default: neuron_mlp.reference,
        }

        class Interpreter(fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                return super().call_function(references.get(target, target), args, kwargs)

        with torch.no_grad():
            outputs = Interpreter(self.gm).run(*self.graph.arguments())
        logits = next(o for o in outputs if isinstance(o, torch.Tensor) and o.shape == self.expected().shape)
        return logits, {gate.id: gate.counters.tolist() for gate in self.graph.context.gates}

    def counted(self) -> dict[str, list[int]]:
        (graph,) = compiled_graphs(self.model)
        return {gate.id: gate.counters.tolist() for gate in graph.gates}


def _set(gates: Any, threshold: float, min_kept: float) -> None:
    for gate in gates:
        gate.record[0], gate.record[1] = threshold, min_kept


def _profile(gate: str) -> GateProfile:
    fractions = torch.tensor([0.0, 0.5, 0.9])
    return GateProfile(
        gate,
        quantiles=torch.linspace(0, 1, 11),
        fractions=fractions,
        drift=torch.tensor([0.0, 1e-4, 1e-2]),
        error=torch.zeros(3),
        kept_low=torch.zeros(3),
        cost=GateCost(64, 128.0, 256.0),
    )


@pytest.fixture(params=FAMILIES)
def gated(request: pytest.FixtureRequest, capture: Callable[..., Any]) -> Gated:
    return Gated(request.param, capture)


@pytest.fixture
def llama(capture: Callable[..., Any]) -> Gated:
    return Gated("llama", capture)


def test_open_gates_give_eagers_answer_and_closed_ones_the_references(gated: Gated) -> None:
    torch.testing.assert_close(gated(), gated.expected())
    counted = gated.counted()
    assert {gate.split(":")[0] for gate in counted} == LEVELS_HERE
    for gate, (offered, executed, failed) in counted.items():
        assert offered == executed > 0, gate
        assert failed == 0
    for threshold, min_kept in ((0.3, 0.0), (1.0, 0.0), (1.0, 0.5)):
        srrc.stats(gated.model, reset=True)
        gated.close(threshold, min_kept)
        actual, (expected, wanted) = gated(), gated.interpreted(threshold, min_kept)
        torch.testing.assert_close(actual, expected)
        counted = gated.counted()
        assert counted == wanted
        if not min_kept:
            assert sum(executed for _, executed, _ in counted.values()) < sum(
                o for o, _, _ in counted.values()
            )
    assert any(failed for _, _, failed in counted.values()), "no guard was put to the test"
    gated.close(-1.0)
    torch.testing.assert_close(gated(), gated.expected())
    assert srrc.stats(gated.model)["fallbacks"] == {}


def test_open_gates_generate_eagers_tokens(llama: Gated) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        expected = llama.eager.generate(**llama.inputs, **options)
        assert torch.equal(llama.model.generate(**llama.inputs, **options), expected)
    assert srrc.stats(llama.model)["fallbacks"] == {}


def _storages(*models: torch.nn.Module) -> int:
    """Bytes of all living tensors that are as large as a matrix of the model."""
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) in {torch.Tensor, torch.nn.Parameter}]
    alive += [p for model in models for p in model.parameters()]
    found = {}
    for tensor in (t for t in alive if t.device.type == "cpu"):
        with contextlib.suppress(
            NotImplementedError
        ):  # of another test's, and only a view: it has no storage
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(size for size in found.values() if size >= 64 * 64 * 4)


def test_packing_keeps_values_and_memory_and_compiles_once(llama: Gated) -> None:
    before, dense = copy.deepcopy(llama.model.state_dict()), _storages(llama.model)
    for _ in range(3):
        llama()
    assert counters["stats"]["unique_graphs"] == 1, "packing made Dynamo compile again"
    packed = [name for name, p in llama.model.named_parameters() if not p.is_contiguous()]
    assert any("down_proj" in name for name in packed)
    assert any("q_proj" in name for name in packed)
    state = llama.model.state_dict()
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    model = sum(p.untyped_storage().nbytes() for p in llama.model.parameters())
    del before, state
    assert _storages(llama.model) - dense <= 0.3 * model


@pytest.mark.parametrize("edit", ["load", "in place", "replaced", "data", "cast"])
def test_weights_are_never_stale(edit: str, llama: Gated) -> None:
    llama()
    llama.close(1.0)
    assert not torch.allclose(llama(), llama.expected())
    other = families.tiny("llama", seed=3).model.state_dict()
    for model in (llama.model, llama.eager):
        with torch.no_grad():
            if edit == "load":
                model.load_state_dict(other)
            elif edit == "in place":
                for parameter in model.parameters():
                    parameter.mul_(1.25)
            elif edit == "replaced":  # a tensor like the old one: Dynamo's guards let it pass
                norm = model.model.norm
                norm.weight = torch.nn.Parameter(1.25 * norm.weight)
            elif edit == "data":
                model.lm_head.weight.data = 2 * model.lm_head.weight.flip(0)
            else:
                model.to(torch.bfloat16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = llama()
    if edit in {"load", "in place", "replaced"}:
        # The thresholds were made for other weights: the gates open.
        assert any(issubclass(w.category, SrrWarning) for w in caught)
        assert "the weights changed since the profile was made" in srrc.stats(llama.model)["fallbacks"]
        torch.testing.assert_close(actual, llama.expected())
    else:
        llama.close(-1.0)
        scale = {"rtol": 0.03, "atol": 0.1} if edit == "cast" else {}
        torch.testing.assert_close(llama(), llama.expected(), **scale)


def test_a_static_cache_is_no_weight_to_watch_and_feedback_writes_to_a_copy(
    llama: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.model.compile(backend="srr", options={"profile": llama.profile, "feedback": 1.0}, dynamic=False)
    caches = [StaticCache(config=llama.model.config, max_cache_len=8) for _ in range(2)]
    for cache in caches:  # its tensors are made, and marked as static, by the first call outside of Dynamo
        llama.eager(torch.tensor([[1]]), past_key_values=cache)
        cache.reset()
    checked = []
    for position, token in enumerate([3, 1, 4, 1, 5]):
        if position == 2:  # compiled by now
            monkeypatch.setattr(Profile, "check", lambda *_: checked.append(1))
        call = {"input_ids": torch.tensor([[token]]), "position_ids": torch.tensor([[position]])}
        with torch.no_grad():
            expected = llama.eager(**call, past_key_values=caches[0]).logits
            actual = llama.model(**call, past_key_values=caches[1]).logits
        torch.testing.assert_close(actual, expected)
    assert not checked, "every call looked at all weights again"
    assert [cache.get_seq_length() for cache in caches] == [5, 5]
    assert srrc.stats(llama.model)["fallbacks"] == {}
    assert sum(graph.drift.samples for graph in compiled_graphs(llama.model)) == 5
