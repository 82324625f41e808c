"""One compiled model of a family beside its eager twin, for the tests that compare the two."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import srrc
from srrc.models_zoo import families
from srrc.report import compiled_graphs
from srrc.runtime.compiled_graph import CompiledGraph


class Parity:
    """`tiny.model` runs under `backend="srr"`, `reference` is an eager copy with the same weights."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        torch._dynamo.reset()
        self.tiny = families.tiny(name)
        perturb(self.tiny.model)
        self.model: Any = self.tiny.model.to(dtype)
        self.reference: Any = copy.deepcopy(self.model)
        self.model.compile(backend="srr", options=options)

    def graphs(self) -> list[CompiledGraph]:
        return compiled_graphs(self.model)

    def pathways(self, graph: int = 0) -> dict[str, int]:
        """Number of pathways of each kind in one of the compiled graphs."""
        return dict(Counter(pathway.kind for pathway in self.graphs()[graph].pathways))

    def fallbacks(self) -> dict[str, int]:
        found = srrc.stats(self.model)["fallbacks"]
        assert isinstance(found, dict)
        return found

    def forward(self, batch: int, length: int, seed: int = 0) -> None:
        """One forward call equals eager's, within the dtype's default tolerances or Inductor's own error."""
        inputs = self.tiny.inputs(batch, length, seed)
        with torch.no_grad():
            expected, actual = tensors(self.reference(**inputs)), tensors(self.model(**inputs))
        assert expected.keys() == actual.keys()
        try:
            torch.testing.assert_close(actual, expected)
        except AssertionError as error:
            bound = self._error_of_inductor(inputs, expected)
            for key, value in actual.items():
                if distance(value, expected[key]) > bound[key]:
                    raise AssertionError(f"{key}: Inductor is within {bound[key]}") from error

    def generate(self, batch: int, length: int, **options: Any) -> None:
        """Greedy decoding gives eager's tokens; in bf16 a tie may fall either way, the rest with it.

        In fp32 the logits of every step are eager's, too.
        """
        inputs = self.tiny.inputs(batch, length)
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False} | options
        reports = {"output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            expected = self.reference.generate(**inputs, **options, **reports)
            actual = self.model.generate(**inputs, **options, **reports)
        assert expected.sequences.shape == actual.sequences.shape
        if self.reference.dtype == torch.float32:
            torch.testing.assert_close(actual.logits, expected.logits)
        first = expected.sequences.shape[1] - len(expected.logits)
        for row, (theirs, ours) in enumerate(zip(expected.sequences, actual.sequences, strict=True)):
            different = (theirs != ours).nonzero().flatten().tolist()
            if not different:
                continue
            assert self.reference.dtype != torch.float32, f"row {row}: {ours.tolist()} for {theirs.tolist()}"
            logits = expected.logits[different[0] - first][row].float()
            margin = logits[theirs[different[0]]] - logits[ours[different[0]]]
            assert margin <= 2**-6 * logits.abs().max(), f"row {row}: {margin} is no tie"

    def backward(self, batch: int, length: int) -> None:
        """Gradients of all parameters, and of inputs that take them, equal eager's."""
        inputs = self.tiny.inputs(batch, length)
        gradients = []
        for model in (self.reference, self.model):
            model.zero_grad(set_to_none=True)
            outputs = tensors(model(**inputs))
            sum(value.float().pow(2).mean() for value in outputs.values() if value.requires_grad).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        expected, actual = gradients
        assert expected, "nothing has a gradient"
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(
                actual[name], value, rtol=1e-3, atol=1e-5 * max(scale, 1.0), msg=lambda m, n=name: f"{n}: {m}"
            )

    def _error_of_inductor(
        self, inputs: Mapping[str, Any], expected: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        with torch.no_grad():
            outputs = tensors(torch.compile(copy.deepcopy(self.reference), backend="inductor")(**inputs))
        return {key: distance(value, expected[key]) for key, value in outputs.items()}


def perturb(model: torch.nn.Module) -> None:
    """Move every parameter: the published initialisation leaves biases at zero, where a lost one hides."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def tensors(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of an output by their path in it."""
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    leaves = pytree.tree_leaves_with_path(output)
    found = {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
    return {path: leaf for path, leaf in found.items() if leaf.numel()}


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.double() - right.double()).abs().max().item()


@pytest.fixture
def parity() -> Iterator[Callable[..., Parity]]:
    """`parity(name, dtype=torch.float32, **options)` -> a `Parity`; a SrrWarning fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", srrc.errors.SrrWarning)
        yield Parity
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def lively() -> Callable[[], Any]:
    """Makes tiny Llamas with weights large enough for gates to move their logits, each like the last."""

    def make() -> Any:
        torch._dynamo.reset()
        model = families.tiny("llama").model
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(3)
        return model

    return make
