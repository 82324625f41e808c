"""Weights of gated linears are laid out by input channel in place: same tensor, same values, same memory."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import srrc
from srrc.errors import SrrWarning
from srrc.models_zoo import families
from srrc.options import LEVELS
from srrc.passes.insert_gates import InsertGates
from srrc.passes.pack_weights import PackWeights, gated_linears, owns_storage, pack_input_major
from srrc.reasons import Reason
from srrc.report import compiled_graphs

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_changes_strides_and_nothing_else(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(5, 3, dtype=dtype))
    before, version, alias = weight.detach().clone(), weight._version, weight
    pack_input_major(weight)
    assert weight is alias
    assert weight.stride() == (1, 5)
    assert torch.equal(weight, before)
    assert owns_storage(weight)
    assert weight.requires_grad
    assert weight.is_leaf
    with torch.no_grad():
        weight[2, 1] = 7
    assert weight.t().contiguous()[1, 2] == 7
    assert weight._version > version


def test_what_shares_its_storage_is_not_ours() -> None:
    base = torch.randn(4, 4)
    assert owns_storage(base)
    assert owns_storage(base.t())
    assert not owns_storage(base[:2])
    assert not owns_storage(torch.randn(1, 4).expand(4, 4))
    assert not owns_storage(torch.randn(4, 4).share_memory_())


def test_a_packed_module_saves_loads_copies_and_casts_as_before() -> None:
    linear = nn.Linear(3, 5)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    pack_input_major(linear.weight)
    torch.testing.assert_close(linear.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(copy.deepcopy(linear).weight, before["weight"])
    other = nn.Linear(3, 5)
    linear.load_state_dict(other.state_dict())
    assert torch.equal(linear.weight, other.weight)
    assert linear.weight.stride() == (1, 5)
    linear.to(torch.bfloat16)
    assert linear.weight.stride() == (1, 5)
    assert torch.equal(linear.weight, other.weight.to(torch.bfloat16))


def _linears(name: str, capture, source, **options) -> dict[str, set[str]]:
    tiny = families.tiny(name)
    (graph,) = capture(tiny.model, **tiny.inputs(1, 4))
    gm = graph.find()
    made = source(graph, **options)
    value = next(node.meta["example_value"] for node in gm.graph.nodes)
    InsertGates(made, LEVELS - {"vocab"}, value.fake_mode)(gm, graph.context)
    wanted = {linear.fqn for linear in gated_linears(graph.context.pathways, made)}
    PackWeights(made, value.fake_mode)(gm, graph.context)
    packed = {
        graph.context.fqns[name] for name, w in made.weights.items() if w.dim() == 2 and not w.is_contiguous()
    }
    return {"wanted": wanted, "packed": packed}


def test_outside_of_dynamo_nothing_is_packed(capture, source) -> None:
    """There is nobody to be told of the new strides: the graph would be compiled for the old ones."""
    assert _linears("llama", capture, source)["packed"] == set()


def test_up_stays_by_rows_where_neurons_are_chosen_before_it(capture, source) -> None:
    wanted = _linears("llama", capture, source)["wanted"]
    assert any("gate_proj" in name for name in wanted)
    assert any("down_proj" in name for name in wanted)
    assert not any("up_proj" in name for name in wanted)
    only_inputs = _linears("llama", capture, source, covers=lambda gate: not gate.endswith("/neuron"))[
        "wanted"
    ]
    assert any("up_proj" in name for name in only_inputs)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("the card is full"), RuntimeError("anything else")])
def test_where_packing_fails_the_model_runs_as_it_lies(
    monkeypatch: pytest.MonkeyPatch,
    letters,
    every_gate_pays,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Dynamo checks the strides that it recorded: of a weight that was not packed they are still the old ones."""
    torch._dynamo.reset()
    profile = srrc.calibrate(
        families.tiny("llama").model, letters, TEXT, windows=2, length=24, progress=False
    )
    torch._dynamo.reset()
    model = families.tiny("llama").model
    asked: list[torch.Tensor] = []

    def pack(weight: torch.Tensor) -> None:
        asked.append(weight)
        if len(asked) == 3:
            raise error
        pack_input_major(weight)

    monkeypatch.setattr("srrc.passes.pack_weights.pack_input_major", pack)
    full = isinstance(error, torch.OutOfMemoryError)
    with torch.no_grad(), nullcontext() if full else pytest.warns(SrrWarning, match="anything else"):
        ids = torch.arange(1, 4)[None]
        expected = model(ids, use_cache=False).logits
        model.compile(backend="srr", options={"profile": profile, "budget": 1.0}, dynamic=False)
        for _ in range(2):
            torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-3, atol=1e-3)
    (graph,) = compiled_graphs(model)
    assert [weight.is_contiguous() for weight in asked] == [at == 2 for at in range(len(asked))]
    refused = [r.place for r in graph.refusals if r.reason is Reason.NO_MEMORY]
    assert len(refused) == int(full)
    assert len([r for r in caplog.records if "stay by rows" in r.message]) == int(full)
    assert bool(graph.gates) == full
    assert (len(asked) > 3) == full
