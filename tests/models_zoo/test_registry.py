"""Loading by name: a directory, module:factory, and every name that leads nowhere."""

from pathlib import Path

import pytest
import torch
from torch import nn

from srrc import models_zoo
from srrc.errors import ModelError
from srrc.models_zoo import families


def make_linear() -> nn.Module:
    return nn.Linear(2, 3)


def make_pair() -> tuple[nn.Module, str]:
    return nn.Linear(2, 3), "tokenizer"


def make_number() -> int:
    return 3


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return Path(__file__).stem


def test_a_directory_gives_back_the_saved_model_in_its_own_class_and_dtype(tmp_path: Path) -> None:
    tiny = families.tiny("bert")
    tiny.model.save_pretrained(tmp_path)  # type: ignore[operator]
    model, tokenizer = models_zoo.load(str(tmp_path))
    assert type(model) is type(tiny.model)
    assert tokenizer is None
    assert not model.training
    for name, value in tiny.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    half, _ = models_zoo.load(str(tmp_path), dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_factory_gives_a_model_with_or_without_a_tokenizer(importable: str) -> None:
    model, tokenizer = models_zoo.load(f"{importable}:make_linear", dtype=torch.bfloat16)
    assert isinstance(model, nn.Linear)
    assert model.weight.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer is None
    assert models_zoo.load(f"{importable}:make_pair")[1] == "tokenizer"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("no model at all", "nor a directory"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("math:make", "has no attribute 'make'"),
        ("math:pi", "pi cannot be called"),
        (":make", "cannot load ':make'"),
        ("./model.py:make", "as in package.module:factory"),
        ("model.py:make", "as in package.module:factory"),
        ("", "no model ''"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        models_zoo.load(name)
    assert "\n" not in str(caught.value)


def test_a_factory_of_something_else_is_refused(importable: str) -> None:
    with pytest.raises(ModelError, match=r"gave a int, not a torch\.nn\.Module"):
        models_zoo.load(f"{importable}:make_number")


@pytest.mark.parametrize("broken", ["empty", "config", "weights"])
def test_a_broken_directory_is_one_clear_line(tmp_path: Path, broken: str) -> None:
    if broken != "empty":
        families.tiny("llama").model.save_pretrained(tmp_path)  # type: ignore[operator]
        path = tmp_path / ("config.json" if broken == "config" else "model.safetensors")
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load") as caught:
        models_zoo.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_hub_id_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load 'nobody/nothing'"):
        models_zoo.load("nobody/nothing")
