"""What the user takes for torch's default dtype is for their own tensors: ours stay what they are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import srrc
from srrc.models_zoo import families
from srrc.ops.coarse_copy import coarse_copy
from srrc.ops.coarse_linear import coarse_weight
from srrc.report import compiled_graphs

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def calibrated(model: torch.nn.Module, letters: Any) -> srrc.Profile:
    torch._dynamo.reset()
    return srrc.calibrate(model, letters, TEXT, windows=2, length=24, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_is_gated_as_ever(dtype: torch.dtype, letters: Any, every_gate_pays: None) -> None:
    model = families.tiny("llama").model
    found = {}
    for default in (torch.float32, dtype):
        with default_dtype(default), torch.no_grad():
            profile = calibrated(copy.deepcopy(model), letters)
            torch._dynamo.reset()
            made = copy.deepcopy(model)
            made.compile(
                backend="srr", options={"budget": 0.6, "profile": profile, "strict": True}, dynamic=False
            )
            logits = made(torch.arange(1, 4)[None], use_cache=False).logits
            (graph,) = compiled_graphs(made)
            records = {gate.id: gate.record.tolist() for gate in graph.gates}
            found[default] = profile, records, logits
    (expected, *truth), (profile, *told) = found.values()
    assert truth[0]
    assert any(threshold >= 0 for threshold, _ in truth[0].values())
    for name, vector in expected.vectors.items():
        torch.testing.assert_close(profile.vectors[name], vector)
    for name, gate in expected.gates.items():
        for field in ("quantiles", "fractions", "drift", "error", "kept_low"):
            ours, theirs = getattr(profile.gates[name], field), getattr(gate, field)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(told, truth, rtol=1e-3, atol=1e-4)


def copied() -> tuple[Tensor, ...]:
    made = coarse_copy(
        weight(), None, torch.eye(64, dtype=torch.float32), torch.zeros(64, dtype=torch.float32)
    )
    return made.coarse, made.scale, made.bias, made.norm


def rounded() -> tuple[Tensor, ...]:
    return coarse_weight(weight(), 8)


def weight() -> Tensor:
    return torch.randn(96, 64, dtype=torch.float32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [copied, rounded])
def test_copies_of_weights_are_as_ever(make: Callable[[], tuple[Tensor, ...]]) -> None:
    expected = make()
    with default_dtype(torch.bfloat16):
        found = make()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
