"""Load a model by name: one of the zoo's, a Hugging Face directory or hub id, or `module:factory`."""

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srrc.errors import ModelError
from srrc.models_zoo import hugging_face, minilm, nanoguard, smollm2, whisper_tiny
from srrc.models_zoo.adapted import adapter_of, merged

Loaded = tuple[nn.Module, Any]
"""The model in evaluation mode, and its tokenizer or processor (None where it has none)."""

_ZOO: dict[str, Callable[[torch.dtype | None], Loaded]] = {
    "smollm2-135m": smollm2.load,
    "minilm-l6": minilm.load,
    "whisper-tiny.en": whisper_tiny.load,
    "nanoguard": nanoguard.load,
}


def names() -> list[str]:
    """Names of the zoo's own models."""
    return list(_ZOO)


def load(name: str, *, dtype: torch.dtype | None = None) -> Loaded:
    """Load a model in evaluation mode, and its tokenizer or processor.

    name: one of `names()`, a directory or hub id in the format of transformers, or `module:factory`, where
        calling `factory()` gives a model or a pair (model, tokenizer); and any of these with "+FOLDER", an adapter
        (as peft writes it) to merge into the weights.
    dtype: of the floating-point weights; None keeps the one they are stored in.
    Raises ModelError where there is no such model, or it cannot be fetched or read.
    """
    if name in _ZOO:
        return _ZOO[name](dtype)
    adapted = adapter_of(name)
    if adapted is not None:
        model, reader = load(adapted[0], dtype=torch.float32)  # a delta is lost in fewer bits
        return merged(model, adapted[1]).eval().to(dtype=dtype), reader
    if name and Path(name).is_dir():
        return hugging_face.load(name, dtype)
    if ":" in name:
        return _from_factory(name, dtype)
    near = difflib.get_close_matches(name, _ZOO, n=1)
    if near:
        raise ModelError(f"no model {name!r}; did you mean {near[0]!r}?")
    if not hugging_face.is_hub_id(name):
        raise ModelError(
            f"no model {name!r}: not one of {', '.join(_ZOO)}, nor a directory, a hub id or module:factory"
        )
    return hugging_face.load(name, dtype)


def _from_factory(name: str, dtype: torch.dtype | None) -> Loaded:
    module_name, _, factory_name = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or module_name.endswith(".py"):
        raise ModelError(
            f"cannot load {name!r}: give a module by the name it is imported by, as in package.module:factory"
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"cannot load {name!r}: {error}") from error
    if not callable(factory):
        raise ModelError(f"cannot load {name!r}: {factory_name} cannot be called")
    made = factory()
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name!r} gave a {type(model).__name__}, not a torch.nn.Module or a pair (model, tokenizer)"
        )
    return model.eval().to(dtype=dtype), tokenizer
