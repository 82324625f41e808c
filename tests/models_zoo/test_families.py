"""Every tiny model runs, forward and generate, at any batch and length, and is the same for the same seed."""

import subprocess
import sys

import pytest
import torch

from srrc.errors import ModelError
from srrc.models_zoo import families

NAMES = families.names()


def _outputs(tiny: families.Tiny, batch: int, length: int) -> list[torch.Tensor]:
    with torch.no_grad():
        out = tiny.model(**tiny.inputs(batch, length))
    values = [out] if isinstance(out, torch.Tensor) else out.to_tuple()
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


@pytest.mark.parametrize("name", NAMES)
def test_forward_gives_finite_outputs_that_differ_between_rows(name: str) -> None:
    tiny = families.tiny(name)
    for batch, length in ((1, 4), (3, 9)):
        outputs = _outputs(tiny, batch, length)
        assert outputs
        for value in outputs:
            assert torch.isfinite(value).all()
    assert not torch.equal(outputs[0][0], outputs[0][1])


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = families.tiny(name, 1), families.tiny(name, 1), families.tiny(name, 2)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator moved"
    pairs = [(first.model.state_dict()[key], value) for key, value in again.model.state_dict().items()]
    assert all(torch.equal(left, right) for left, right in pairs)
    flat = [torch.cat([p.detach().flatten() for p in tiny.model.parameters()]) for tiny in (first, other)]
    assert not torch.equal(*flat)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_runs(name: str) -> None:
    tiny = families.tiny(name)
    tiny.model.to(torch.bfloat16)
    floats = [value for value in tiny.inputs(2, 6).values() if value.is_floating_point()]
    assert all(value.dtype == torch.bfloat16 for value in floats)
    assert all(torch.isfinite(value).all() for value in _outputs(tiny, 2, 6))


@pytest.mark.parametrize("name", [name for name in NAMES if families.tiny(name).generates])
def test_generate_writes_new_tokens(name: str) -> None:
    tiny = families.tiny(name)
    inputs = tiny.inputs(2, 5)
    with torch.no_grad():
        ids = tiny.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    if tiny.kind == "encoder-decoder":
        assert ids.shape[0] == 2
        assert ids.shape[1] >= 4
    else:
        assert ids.shape == (2, 9)
        assert torch.equal(ids[:, :5], inputs["input_ids"])


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no family 'lama'.*llama"):
        families.tiny("lama")


def test_importing_the_zoo_imports_no_transformers() -> None:
    code = "import sys, srrc.models_zoo, srrc.models_zoo.families; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
