"""Encoder-decoders: models that read a text or a sound and write another text."""

from typing import Any

import torch
from torch import Tensor, nn

from srrc.models_zoo.families.tiny import (
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    POSITIONS,
    VOCAB,
    Family,
    draw_floats,
    draw_tokens,
)

_MEL_BINS = 16
_FRAMES = 64
_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
}


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB,
            d_model=HIDDEN,
            d_kv=HIDDEN // HEADS,
            d_ff=INNER,
            num_layers=LAYERS,
            num_heads=HEADS,
            decoder_start_token_id=0,
        )
    )


def _bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(**_SHARED, max_position_embeddings=POSITIONS, forced_eos_token_id=None)
    )


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            **_SHARED,
            num_mel_bins=_MEL_BINS,
            max_source_positions=_FRAMES // 2,
            max_target_positions=POSITIONS,
            decoder_start_token_id=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            begin_suppress_tokens=None,
        )
    )


def _draw_pair(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """Tokens on both sides: {"input_ids", "decoder_input_ids"}, each int64 [B, S]."""
    target = torch.randint(4, VOCAB, (batch, length), generator=generator)
    return draw_tokens(model, generator, batch, length) | {"decoder_input_ids": target}


def _draw_sound(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """A sound and the text so far: {"input_features" float [B, 16, 64], "decoder_input_ids" int64 [B, S]}."""
    target = torch.randint(4, VOCAB, (batch, length), generator=generator)
    features = draw_floats(model, generator, batch, _MEL_BINS, _FRAMES)
    return {"input_features": features, "decoder_input_ids": target}


FAMILIES = (
    Family("t5", "encoder-decoder", _t5, _draw_pair, generates=True),
    Family("bart", "encoder-decoder", _bart, _draw_pair, generates=True),
    Family("whisper", "encoder-decoder", _whisper, _draw_sound, generates=True),
)
