"""What every family must also bear: bf16, a static cache, other batches and lengths, gradients."""

import pytest
import torch

from srrc.models_zoo import families

NAMES = families.names()
GENERATORS = [name for name in NAMES if families.tiny(name).generates]
EVERYDAY = ("llama", "gpt2", "bert", "resnet")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in NAMES]
)
def test_gradients_equal_eager(name: str, parity) -> None:
    run = parity(name)
    run.backward(2, 6)
    assert run.fallbacks() == {}
    assert not any(graph.pathways for graph in run.graphs()), "under autograd the dense graph runs"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_other_batches_and_lengths(name: str, dtype: torch.dtype, parity) -> None:
    run = parity(name, dtype)
    for batch, length in ((1, 6), (2, 6), (1, 11), (3, 9)):
        run.forward(batch, length)
    assert run.fallbacks() == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_bfloat16_generates(name: str, parity) -> None:
    run = parity(name, torch.bfloat16)
    run.generate(2, 6)
    assert run.fallbacks() == {}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_static_cache(name: str, dtype: torch.dtype, parity) -> None:
    run = parity(name, dtype)
    run.generate(1, 7, cache_implementation="static")
    assert run.fallbacks() == {}
