"""`torch.compile(backend="srr")` for a card that is not there: what Inductor launches for a gated model, and how."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

import srrc
from srrc import compiler
from srrc.backend import srr
from srrc.backends.triton.ops import vocab_head  # noqa: F401
from srrc.bench.gpu.decode import Shape, make_layer
from srrc.bench.gpu.decode_linears import Sparse
from srrc.errors import SrrWarning
from srrc.models_zoo import families
from srrc.profile import Profile
from srrc.report import compiled_graphs
from srrc.runtime.ledger import Ledger
from srrc.runtime.stream import Stream

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))


def letters(text: str, **options: Any) -> dict[str, list[int]]:
    return {"input_ids": [ord(each) % 256 for each in text]}


def calibrated(*, neurons: bool) -> tuple[nn.Module, Profile]:
    with unset_fake_temporarily():
        model = families.tiny("llama").model
        profile = srrc.calibrate(model, letters, TEXT, windows=4, length=24, neurons=neurons, progress=False)
    return model, profile


def to_card(model: nn.Module, profile: Profile, dtype: torch.dtype) -> Profile:
    """Gives the model parameters on the card; the profile of the same model there."""
    for module in model.modules():
        for group in (module._parameters, module._buffers):
            for name, value in [*group.items()]:
                if value is not None:
                    kind = dtype if value.is_floating_point() else value.dtype
                    made = torch.empty_strided(value.shape, value.stride(), dtype=kind, device="cuda")
                    group[name] = nn.Parameter(made) if isinstance(value, nn.Parameter) else made
    vectors = {
        name: torch.empty(vector.shape, dtype=vector.dtype, device="cuda") if vector.dim() else vector
        for name, vector in profile.vectors.items()
    }
    return dataclasses.replace(profile, vectors=vectors)


def pretend(patch: pytest.MonkeyPatch, mode: FakeTensorMode) -> None:
    """Values that are read while compiling are not there: fingerprints, times, thresholds, counters, texts."""
    patch.setattr(Profile, "check", lambda *args: None)
    patch.setattr("srrc.backends.triton.worth.measure", lambda *args: None)
    patch.setattr(Ledger, "due", lambda *args: False)
    patch.setattr(Stream, "saw", lambda *args: False)
    patch.setattr("srrc.runtime.compiled_graph.set_records", lambda *args: None)
    patch.setattr("srrc.routing._is_being_captured", lambda tensor: False)
    specialise, from_tensor = compiler._specialise, FakeTensorMode.from_tensor

    def under_the_mode(*args: Any) -> Any:
        with mode:
            return specialise(*args)

    def of_another_mode(self: FakeTensorMode, tensor: Tensor, **options: Any) -> Tensor:
        if not isinstance(tensor, FakeTensor):
            return from_tensor(self, tensor, **options)
        with self:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )

    patch.setattr(compiler, "_specialise", under_the_mode)
    patch.setattr(FakeTensorMode, "from_tensor", of_another_mode)


def compiled(card: Any, rows: int, *, neurons: bool, options: Mapping[str, object]) -> dict[str, Any]:
    model, profile = calibrated(neurons=neurons)
    profile = to_card(model, profile, torch.bfloat16)
    ids = torch.zeros(1, rows, dtype=torch.int64, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, ids.fake_mode)  # type: ignore[attr-defined]
        given = {"budget": 0.5, "profile": profile, "feedback": 0.0, **options}
        backend = lambda gm, examples: srr(gm, examples, options=given)  # noqa: E731
        codes = card.codes(lambda ids: model(input_ids=ids, use_cache=False).logits, ids, backend=backend)
    (graph,) = compiled_graphs(model)
    return {
        "codes": codes,
        "gates": [gate.id for gate in graph.gates],
        "refused": sorted({f"{refusal.kind}: {refusal.reason.name}" for refusal in graph.refusals}),
        "fallbacks": dict(graph.fallbacks),
        "regions": graph.regions,
    }


def with_neuron_gates(card: Any) -> dict[str, Any]:
    return compiled(card, 1, neurons=True, options={"strict": True})


def with_channel_gates(card: Any) -> dict[str, Any]:
    return compiled(card, 3, neurons=False, options={"strict": True})


def prefill(card: Any) -> dict[str, Any]:
    return compiled(card, 20, neurons=True, options={"strict": True})


def on_an_old_card(card: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        with pytest.warns(SrrWarning) as warned:
            found = compiled(card, 1, neurons=True, options={})
    return {**found, "warned": [str(each.message) for each in warned if each.category is SrrWarning]}


def without_triton(card: Any) -> dict[str, Any]:
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srrc.backends.triton.card.importlib", nothing)
        with pytest.warns(SrrWarning) as warned:
            found = compiled(card, 1, neurons=True, options={})
    return {**found, "warned": [str(each.message) for each in warned if each.category is SrrWarning]}


def head(card: Any, rows: int = 1, width: int = 64) -> list[str]:
    def logits(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return torch.ops.srr_triton.vocab_head(x.relu(), weight, None, *rest, 40)

    def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    args = [
        made(1, rows, width, dtype=torch.bfloat16), made(9000, width, dtype=torch.bfloat16),
        made(width, width, dtype=torch.bfloat16), made(width), made(width, 9000, dtype=torch.int8).t(),
        made(3, width), made(9000), made(width), made(2), made(4, dtype=torch.int64),
    ]  # fmt: skip
    return card.codes(logits, *args)  # type: ignore[no-any-return]


def wide_head(card: Any) -> list[str]:
    return head(card, 8, 4096)


def measured_layer(card: Any) -> list[str]:
    """A layer as `srrc.bench.gpu` decodes by it."""
    shape = Shape(
        layers=1, hidden=512, heads=8, kv_heads=2, head=64, neurons=1024, vocabulary=1000, positions=64
    )
    layer = make_layer(shape, Sparse(shape.linears, {}))

    def made(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="cuda")

    weights = [made(inputs, outputs).t() for inputs, outputs in shape.linears[:4]]
    gates = [made(2, dtype=torch.float32) for _ in weights]
    cache = [made(2, 64, 64), made(2, 64, 64)]
    rest = (made(32, dtype=torch.float32), made(1, dtype=torch.int64))
    return card.codes(layer, made(1, 512), made(1, 512), weights, gates, *cache, *rest)  # type: ignore[no-any-return]


def all_of_them(card: Any) -> dict[str, Any]:
    each_of = (with_neuron_gates, with_channel_gates, prefill, head, wide_head, measured_layer)
    return {each.__name__: each(card) for each in each_of}


def fallbacks(card: Any) -> dict[str, Any]:
    return {each.__name__: each(card) for each in (on_an_old_card, without_triton)}


def launched(code: str) -> list[str]:
    """Our kernels that a wrapper launches, in order."""
    names = re.findall(r"^ +(_\w+?)_\d+\.run\(", code, re.MULTILINE)
    assert all(name.startswith("_") for name in names)
    return names


@pytest.fixture(scope="module")
def found(on_card: Callable[[Callable[[Any], Any]], Any]) -> dict[str, Any]:
    return on_card(all_of_them)  # type: ignore[no-any-return]


LAYER = ["_select", "_sparse_linear", "_select", "_sparse_linear"]
"""q, k and v are read by one launch; o has another list."""


def nothing_waits(code: str) -> None:
    assert "torch.ops.srr" not in code
    assert ".item()" not in code
    assert "copy_(" not in code


def test_neuron_gates(found: Any) -> None:
    told = found["with_neuron_gates"]
    [code] = told["codes"]
    mlp = ["_select", "_sparse_linear", "_select", "_listed_rows", "_sparse_linear"]
    assert launched(code) == [*LAYER, *mlp] * 2
    nothing_waits(code)
    assert told["fallbacks"] == {}
    assert told["regions"] == [1, 1]
    assert "residual: WAITS_FOR_THE_HOST" in told["refused"]
    assert sum(gate.endswith("/neuron") for gate in told["gates"]) == 2


def test_channel_gates_of_several_rows(found: Any) -> None:
    [code] = found["with_channel_gates"]["codes"]
    mlp = ["_select", "_sparse_linear", "_select", "_sparse_linear"]
    assert launched(code) == [*LAYER, *mlp] * 2
    nothing_waits(code)


def test_gates_are_no_functions_of_the_counters(found: Any) -> None:
    """Counters are written where they are: no copy of them is made, nor written back."""
    [code] = found["with_neuron_gates"]["codes"]
    body = code[code.index("def call(") :]
    assert not re.search(r"empty_strided_cuda\(\((3|3, 3|9|6|4), \), .*torch.int64", body)
    assert "triton_poi_fused_slice" not in body


def test_many_rows_are_dense(found: Any) -> None:
    told = found["prefill"]
    [code] = told["codes"]
    assert launched(code) == []
    assert told["gates"] == []
    assert {"channel: MANY_ROWS", "neuron: MANY_ROWS"} <= set(told["refused"])


def test_the_head(found: Any) -> None:
    [code] = found["head"]
    assert launched(code) == ["_select", "_sparse_linear", "_vocab_head"]
    nothing_waits(code)


def test_rows_of_a_head_read_the_rotation_together(found: Any) -> None:
    """Programs side by side have the eight rows of x, and the same row of the rotation: it is read once."""
    [code] = found["wide_head"]
    assert launched(code) == ["_select", "_sparse_linear", "_vocab_head"]
    nothing_waits(code)
    loads = r"tl\.load\(in_ptr\d \+ \(r0_\d \+ 4096\*(x\d)\)"  # of rows: of x, and then of the rotation
    [kernel] = [each for each in code.split("async_compile.triton(") if len(re.findall(loads, each)) == 2]
    indices = dict(re.findall(r"(x\d) = \(?(xindex (?:%|//) \d+)", kernel))
    assert [indices[each] for each in re.findall(loads, kernel)] == ["xindex % 8", "xindex // 8"]


def test_the_layer_that_is_measured(found: Any) -> None:
    [code] = found["measured_layer"]
    assert launched(code) == ["_select", "_sparse_linear"] * 4
    nothing_waits(code)


def test_without_a_card_that_fits_or_triton_it_is_dense(
    on_card: Callable[[Callable[[Any], Any]], Any],
) -> None:
    found = on_card(fallbacks)
    for name, reason in (
        ("on_an_old_card", "older than the kernels need"),
        ("without_triton", "Triton is not there"),
    ):
        told = found[name]
        [code] = told["codes"]
        assert launched(code) == []
        assert told["gates"] == []
        assert len(told["warned"]) == 1
        assert reason in told["warned"][0]
        assert sum(told["fallbacks"].values()) == 1
