"""Encoders: models that read a whole text at once."""

from typing import Any

import torch
from torch import Tensor, nn

from srrc.models_zoo.families.tiny import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, VOCAB, Family, draw_tokens

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_SHARED))


def _roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**_SHARED))


def _distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(
        DistilBertConfig(
            vocab_size=VOCAB,
            dim=HIDDEN,
            hidden_dim=INNER,
            n_layers=LAYERS,
            n_heads=HEADS,
            max_position_embeddings=POSITIONS,
        )
    )


def _draw(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """Tokens and a mask that pads the last row by a quarter: {"input_ids", "attention_mask"} int64 [B, S]."""
    inputs = draw_tokens(model, generator, batch, length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    if batch > 1:
        mask[-1, length - length // 4 :] = 0
    return inputs | {"attention_mask": mask}


FAMILIES = (
    Family("bert", "encoder", _bert, _draw),
    Family("roberta", "encoder", _roberta, _draw),
    Family("distilbert", "encoder", _distilbert, _draw),
)
