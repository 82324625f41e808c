"""Models that look at pictures, one of them with a text beside."""

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

_SIDE = 32
_SHARED: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
_IMAGES: dict[str, Any] = {**_SHARED, "image_size": _SIDE, "patch_size": 8}


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_IMAGES, num_labels=10))


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {**_SHARED, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_IMAGES, projection_dim=32))


class _Block(nn.Module):
    """Two 3x3 convolutions around a skip connection (He et al., 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))  # [B, C, H, W]
        return torch.relu(x + self.norm2(self.conv2(h)))


class _ResNet(nn.Module):
    """Convolutions only, down to a classifier of ten."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(LAYERS)))
        self.head = nn.Conv2d(width, 10, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        h = self.blocks(self.stem(pixel_values))  # [B, C, H/2, W/2]
        return self.head(h).mean(dim=(2, 3))


def _draw_image(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """{"pixel_values": float [B, 3, 32, 32]}."""
    return {"pixel_values": draw_floats(model, generator, batch, 3, _SIDE, _SIDE)}


def _draw_any_image(
    model: nn.Module, generator: torch.Generator, batch: int, length: int
) -> dict[str, Tensor]:
    """{"pixel_values": float [B, 3, 8 * length, 8 * length]}."""
    return {"pixel_values": draw_floats(model, generator, batch, 3, 8 * length, 8 * length)}


def _draw_both(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """A picture [B, 3, 32, 32] and a text [B, S] that ends in the end token, with its mask."""
    inputs = draw_tokens(model, generator, batch, length)
    inputs["input_ids"][:, -1] = 2
    return inputs | {
        "attention_mask": torch.ones(batch, length, dtype=torch.int64),
        **_draw_image(model, generator, batch, length),
    }


FAMILIES = (
    Family("vit", "vision", _vit, _draw_image),
    Family("clip", "vision", _clip, _draw_both),
    Family("resnet", "vision", _ResNet, _draw_any_image),
)
