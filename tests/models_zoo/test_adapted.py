"""A model with an adapter, by name."""

from pathlib import Path

import pytest
import torch

from srrc import models_zoo
from srrc.errors import ModelError
from srrc.models_zoo import families
from srrc.training.adapters import Adapters

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, str, torch.Tensor]:
    """Folders of a model and of an adapter, and the weight that they make."""
    model = families.tiny("llama").model
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    adapters = Adapters(model, [NAME], rank=2)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    adapters.save(tmp_path / "adapter")
    wanted = dict(model.named_parameters())[NAME] + adapters.delta(NAME)
    return str(tmp_path / "model"), str(tmp_path / "adapter"), wanted.detach()


def test_an_adapter_is_merged_in_float32(saved: tuple[str, str, torch.Tensor]) -> None:
    model, adapter, wanted = saved
    found, _ = models_zoo.load(f"{model}+{adapter}", dtype=torch.bfloat16)
    assert torch.equal(dict(found.named_parameters())[NAME], wanted.to(torch.bfloat16))
    assert not found.training


def test_what_is_no_adapter_is_one_clear_line(saved: tuple[str, str, torch.Tensor], tmp_path: Path) -> None:
    model, adapter, _ = saved
    with pytest.raises(ModelError, match="no model"):
        models_zoo.load(f"{model}+{tmp_path / 'nothing'}")
    with pytest.raises(ModelError, match="no model"):
        models_zoo.load(f"+{adapter}")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="does not fit this model") as caught:
        models_zoo.load(f"{model}+{adapter}")
    assert "\n" not in str(caught.value)
