"""Models that are one call: encoders, classifiers, pictures, and whatever else maps tensors to tensors."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from srrc.backends.onnx.interfaces.base import BATCH, SEQUENCE, SIZES, Interface, Wrapped
from srrc.errors import ModelError

_TEXT = ("input_ids", "attention_mask", "token_type_ids")


class OneCall(Wrapped):
    """A model with keyword arguments, behind positional ones."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(model)
        self._names = names
        cached = "use_cache" in inspect.signature(model.forward).parameters
        self._fixed = {"use_cache": False} if cached else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the model's output, in order."""
        found = self.model(**dict(zip(self._names, tensors, strict=True)), **self._fixed)
        return tuple(_named(found).values())


def interface(model: nn.Module, inputs: Mapping[str, Tensor]) -> Interface:
    """The interface of a model for one example of its inputs. Runs it once to see its outputs.

    The first dimension of each is the batch, the second of whole numbers the sequence.
    Raises ModelError where the call fails.
    """
    module = OneCall(model, tuple(inputs))
    try:
        with torch.no_grad():
            fixed = module._fixed  # noqa: SLF001  (its own class)
            outputs = _named(model(**inputs, **fixed))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the model cannot be called with {', '.join(inputs)}: {first}") from error
    if not outputs:
        raise ModelError(f"the output of {type(model).__name__} holds no tensor")
    axes: dict[str, dict[int, str]] = {}
    for name, tensor in inputs.items():
        axes[name] = {0: BATCH} if tensor.dim() else {}
        if tensor.dim() == 2 and not tensor.is_floating_point():
            axes[name][1] = SEQUENCE
    return Interface("model", module, dict(inputs), axes, tuple(outputs))


def reads_text(model: nn.Module) -> bool:
    """Whether text is all that `model` takes."""
    taken = inspect.signature(model.forward).parameters
    return "input_ids" in taken and not {"pixel_values", "input_features", "input_values"} & taken.keys()


def example(model: nn.Module) -> dict[str, Tensor]:
    """Inputs that fit the model, told from its signature and configuration.

    Raises ModelError where it is neither of text nor of pictures.
    """
    taken = inspect.signature(model.forward).parameters
    config: Any = getattr(model, "config", None)
    batch, length = SIZES[BATCH], SIZES[SEQUENCE]
    found: dict[str, Tensor] = {}
    if "input_ids" in taken:
        for name in _TEXT:
            if name in taken:
                found[name] = torch.ones(batch, length, dtype=torch.int64)
        if "token_type_ids" in found:
            found["token_type_ids"] = torch.zeros_like(found["token_type_ids"])
    if "input_features" in taken:  # sound
        frames = 2 * int(config.max_source_positions)
        dtype = next(model.parameters()).dtype
        found["input_features"] = torch.zeros((batch, int(config.num_mel_bins), frames), dtype=dtype)
    if "decoder_input_ids" in taken and found:
        found["decoder_input_ids"] = torch.ones(batch, length, dtype=torch.int64)
    if "pixel_values" in taken:
        side = _picture(config)
        dtype = next(model.parameters()).dtype
        found["pixel_values"] = torch.zeros((batch, *side), dtype=dtype)
    if not found:
        raise ModelError(
            f"what {type(model).__name__} takes cannot be told from its signature; give inputs=, one call's "
            "keyword arguments (on the command line: a factory that gives the pair (model, inputs))"
        )
    return found


def _picture(config: Any) -> tuple[int, int, int]:
    """Channels, height and width."""
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", None)
    if size is None:
        raise ModelError("the model's configuration has no image_size; give inputs=, one call's arguments")
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(getattr(inner, "num_channels", 3)), int(height), int(width)


def _named(found: Any) -> dict[str, Tensor]:
    """The tensors of an output by name: its own names, or output, output_1 and so on. Caches are left out."""
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    leaves = [leaf for leaf in _pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return {f"output_{index}" if index else "output": leaf for index, leaf in enumerate(leaves)}
