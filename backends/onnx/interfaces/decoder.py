"""Decoders with a cache of keys and values: one file for prefill and decoding.

input_ids [B, S], attention_mask [B, P + S], position_ids [B, S], past_key_values.N.key and .value [B, H, P, D]
-> logits [B, S, V], present.N.key and .value [B, H, P + S, D]
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from srrc.backends.onnx.interfaces.base import BATCH, PAST, SEQUENCE, SIZES, TOTAL, Interface, Wrapped


def fits(model: nn.Module) -> bool:
    """Whether `model` is a decoder of transformers that takes its cache as `past_key_values`."""
    generates = getattr(model, "can_generate", None)
    if not callable(generates) or not generates():
        return False
    return "past_key_values" in inspect.signature(model.forward).parameters


class CachedDecoder(Wrapped):
    """A decoder of transformers with its cache as flat tensors."""

    def __init__(self, model: nn.Module, *, positions: bool) -> None:
        super().__init__(model)
        self._positions = positions

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """rest: position_ids where the model takes them, then key and value of each layer."""
        from transformers.cache_utils import DynamicCache

        extra = {"position_ids": rest[0]} if self._positions else {}
        past = rest[1:] if self._positions else rest
        pairs = [(past[index], past[index + 1]) for index in range(0, len(past), 2)]
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(ddp_cache_data=pairs),
            use_cache=True,
            **extra,
        )
        present = [each for layer in found.past_key_values.layers for each in (layer.keys, layer.values)]
        return (found.logits, *present)


def interface(model: Any) -> Interface:
    """The interface of a decoder for which `fits`; runs it once to see its cache."""
    batch, length, past = SIZES[BATCH], SIZES[SEQUENCE], SIZES[PAST]
    ids = torch.arange(4, 4 + batch * length).reshape(batch, length)
    with torch.no_grad():
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    positions = "position_ids" in inspect.signature(model.forward).parameters
    example: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones(batch, past + length).long()}
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: BATCH, 1: SEQUENCE},
        "attention_mask": {0: BATCH, 1: TOTAL},
    }
    if positions:
        example["position_ids"] = torch.arange(past, past + length).expand(batch, length).contiguous()
        axes["position_ids"] = {0: BATCH, 1: SEQUENCE}
    outputs = ["logits"]
    for index, layer in enumerate(layers):
        for part, value in (("key", layer.keys), ("value", layer.values)):
            name = f"past_key_values.{index}.{part}"
            example[name] = value.new_zeros((batch, value.shape[1], past, value.shape[3]))
            axes[name] = {0: BATCH, 2: PAST}
            outputs.append(f"present.{index}.{part}")
    return Interface("model", CachedDecoder(model, positions=positions), example, axes, tuple(outputs))
