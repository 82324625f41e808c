"""Encoder-decoders: two files. The encoder's also makes the keys and values that the decoder's layers read of it.

    encoder_model: input_ids and attention_mask [B, E], or input_features [B, F, T]
        -> last_hidden_state, present.N.encoder.key and .value [B, H, E, D]
    decoder_model: input_ids [B, S], encoder_attention_mask [B, E] (for text), past_key_values.N.decoder.key and .value
        [B, H, P, D], past_key_values.N.encoder.key and .value -> logits, present.N.decoder.key and .value

The decoder never sees the encoder's hidden states: what it reads of them is computed once, not once a token.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from srrc.backends.onnx.interfaces.base import (
    BATCH,
    ENCODER_SEQUENCE,
    PAST,
    SEQUENCE,
    SIZES,
    Interface,
    Wrapped,
)


def fits(model: nn.Module) -> bool:
    """Whether `model` is an encoder-decoder of transformers that writes text."""
    generates = getattr(model, "can_generate", None)
    if not callable(generates) or not generates():
        return False
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


class EncoderHalf(Wrapped):
    """The encoder, and the keys and values of each cross-attention."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(model)
        self._names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The encoder's inputs in order -> hidden states, then key and value of each layer."""
        model: Any = self.model
        hidden = model.get_encoder()(**dict(zip(self._names, tensors, strict=True))).last_hidden_state
        batch = hidden.shape[0]
        start = torch.full((batch, 1), int(_start(model)), dtype=torch.int64)
        mask = tensors[self._names.index("attention_mask")] if "attention_mask" in self._names else None
        cache = _decode(model, start, hidden, mask, _caches([], [])).past_key_values.cross_attention_cache
        return (hidden, *(each for layer in cache.layers for each in (layer.keys, layer.values)))


class DecoderHalf(Wrapped):
    """The decoder with both of its caches as flat tensors."""

    def __init__(self, model: nn.Module, *, masked: bool, width: int) -> None:
        super().__init__(model)
        self._masked, self._width = masked, width

    def forward(self, input_ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """rest: encoder_attention_mask for text, then for each layer its own key and value and the encoder's."""
        mask = rest[0] if self._masked else None
        past = rest[1:] if self._masked else rest
        own = [(past[index], past[index + 1]) for index in range(0, len(past), 4)]
        cross = [(past[index + 2], past[index + 3]) for index in range(0, len(past), 4)]
        batch, _, length, _ = cross[0][0].shape
        # Its values are not read: the caches of the cross-attentions are full. Its shape is.
        hidden = cross[0][0].new_zeros(()).expand(batch, length, self._width)
        found = _decode(self.model, input_ids, hidden, mask, _caches(own, cross))
        layers = found.past_key_values.self_attention_cache.layers
        return (found.logits, *(each for layer in layers for each in (layer.keys, layer.values)))


def interfaces(model: Any) -> tuple[Interface, Interface]:
    """The two interfaces of an encoder-decoder for which `fits`; runs it once to see its caches."""
    batch, length, past = SIZES[BATCH], SIZES[SEQUENCE], SIZES[PAST]
    example, axes = _encoder_example(model)
    encoder = EncoderHalf(model, tuple(example))
    with torch.no_grad():
        hidden, *cross = encoder(*example.values())
        mask = example.get("attention_mask")
        start = torch.full((batch, 1), int(_start(model)), dtype=torch.int64)
        own = _decode(model, start, hidden, mask, _caches([], [])).past_key_values.self_attention_cache.layers
    layers = range(len(own))
    outputs = [f"present.{n}.encoder.{part}" for n in layers for part in ("key", "value")]
    first = Interface("encoder_model", encoder, example, axes, ("last_hidden_state", *outputs))

    inner: dict[str, Tensor] = {"input_ids": torch.full((batch, length), int(_start(model)))}
    names: dict[str, dict[int, str]] = {"input_ids": {0: BATCH, 1: SEQUENCE}}
    if mask is not None:
        inner["encoder_attention_mask"] = mask
        names["encoder_attention_mask"] = {0: BATCH, 1: ENCODER_SEQUENCE}
    for n in layers:
        for part, value in (("key", own[n].keys), ("value", own[n].values)):
            inner[f"past_key_values.{n}.decoder.{part}"] = value.new_zeros(
                (batch, value.shape[1], past, value.shape[3])
            )
            names[f"past_key_values.{n}.decoder.{part}"] = {0: BATCH, 2: PAST}
        for part, value in (("key", cross[2 * n]), ("value", cross[2 * n + 1])):
            inner[f"past_key_values.{n}.encoder.{part}"] = value
            names[f"past_key_values.{n}.encoder.{part}"] = {0: BATCH, 2: ENCODER_SEQUENCE}
    decoder = DecoderHalf(model, masked=mask is not None, width=hidden.shape[-1])
    outputs = [f"present.{n}.decoder.{part}" for n in layers for part in ("key", "value")]
    return first, Interface("decoder_model", decoder, inner, names, ("logits", *outputs))


def _encoder_example(model: Any) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    batch, length = SIZES[BATCH], SIZES[ENCODER_SEQUENCE]
    if "input_features" in inspect.signature(model.get_encoder().forward).parameters:  # sound
        config = model.config
        frames = 2 * int(config.max_source_positions)
        dtype = next(model.parameters()).dtype
        return {"input_features": torch.zeros(batch, int(config.num_mel_bins), frames, dtype=dtype)}, {
            "input_features": {0: BATCH}
        }
    both = torch.ones(batch, length, dtype=torch.int64)
    axes = {0: BATCH, 1: ENCODER_SEQUENCE}
    return {"input_ids": both, "attention_mask": both.clone()}, {"input_ids": axes, "attention_mask": axes}


def _decode(model: Any, ids: Tensor, hidden: Tensor, mask: Tensor | None, cache: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    masks = {} if mask is None else {"attention_mask": mask}
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=ids,
        past_key_values=cache,
        use_cache=True,
        **masks,
    )


def _caches(own: list[tuple[Tensor, Tensor]], cross: list[tuple[Tensor, Tensor]]) -> Any:
    """A cache that knows the encoder's keys and values where `cross` holds them."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(ddp_cache_data=own), DynamicCache(ddp_cache_data=cross))


def _start(model: Any) -> int:
    config = model.config
    for name in ("decoder_start_token_id", "bos_token_id"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return 0
