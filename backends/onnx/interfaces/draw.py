"""Random inputs of any sizes for an interface."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from srrc.backends.onnx.interfaces import plain
from srrc.backends.onnx.interfaces.base import BATCH, PAST, SEQUENCE, TOTAL, Interface


def draw(interface: Interface, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs whose axes have these sizes; axes that are not named are as in the example.

    Tokens are random, masks leave nothing out, positions follow the cache, everything else is normal.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(sizes)
    if PAST in sizes and SEQUENCE in sizes:
        sizes.setdefault(TOTAL, sizes[PAST] + sizes[SEQUENCE])
    found = {}
    for name, example in interface.example.items():
        axes = interface.axes.get(name, {})
        shape = [sizes.get(axes.get(at, ""), size) for at, size in enumerate(example.shape)]
        found[name] = _draw(name, example, shape, sizes, interface.module, generator)
    return found


def random_calls(
    model: nn.Module, inputs: Mapping[str, Tensor] | None, count: int = 6
) -> list[dict[str, Any]]:
    """Keyword arguments of some calls of a model that reads no text, for calibration.

    inputs: one call's, of which the others have the sizes; otherwise rows of 32 tokens
    """
    one = plain.interface(model, plain.example(model) if inputs is None else inputs)
    sizes = {BATCH: 4, SEQUENCE: 32} if inputs is None else {}
    fixed = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return [{**draw(one, sizes, seed), **fixed} for seed in range(count)]


def _draw(
    name: str,
    example: Tensor,
    shape: list[int],
    sizes: Mapping[str, int],
    module: nn.Module,
    generator: torch.Generator,
) -> Tensor:
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    if name == "position_ids":
        first = sizes.get(PAST, 0)
        return torch.arange(first, first + shape[-1]).expand(shape).contiguous()
    if name.endswith("input_ids"):
        return torch.randint(0, _vocabulary(module), shape, generator=generator)
    return (
        torch.zeros(shape, dtype=example.dtype)
        if name == "token_type_ids"
        else torch.ones(shape).to(example.dtype)
    )


def _vocabulary(module: nn.Module) -> int:
    """Size of the table that tokens are looked up in: the model's own word for it, or else its first one."""
    known = getattr(module, "vocabulary", None)  # of a file
    if isinstance(known, int):
        return known
    model: Any = getattr(module, "model", module)
    ask = getattr(model, "get_input_embeddings", None)
    try:
        table = ask() if callable(ask) else None
    except NotImplementedError:
        table = None
    if isinstance(table, nn.Embedding):
        return table.num_embeddings
    return next((each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding)), 2)
