"""A Llama as anyone would write it, for `torch.compile` to take: its prompt without a cache, then tokens over one."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.bench.gpu.decode import Shape


def _linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=inputs**-0.5)
    return made


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Grouped queries over [1, L, K], with a cache of `shape.positions`."""

    keys: Tensor
    values: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide, narrow = shape.heads * shape.head, shape.kv_heads * shape.head
        self.shape = shape
        self.q_proj, self.k_proj = _linear(shape.hidden, wide), _linear(shape.hidden, narrow)
        self.v_proj, self.o_proj = _linear(shape.hidden, narrow), _linear(wide, shape.hidden)
        for name in ("keys", "values"):
            cache = torch.randn(1, shape.kv_heads, shape.positions, shape.head)
            self.register_buffer(name, cache, persistent=False)

    def forward(self, x: Tensor, angles: Tensor, position: Tensor | None) -> Tensor:
        """angles: [L, head / 2]; position: [1], where in the cache the one token goes."""
        q, k, v = (
            linear(x).view(1, x.shape[1], -1, self.shape.head).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotated(q, angles), _rotated(k, angles)
        if position is not None:
            self.keys.index_copy_(2, position, k)
            self.values.index_copy_(2, position, v)
            k, v = self.keys, self.values
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=position is None, enable_gqa=True)
        return cast("Tensor", self.o_proj(mixed.transpose(1, 2).reshape(1, x.shape[1], -1)))


class MLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.neurons)
        self.up_proj = _linear(shape.hidden, shape.neurons)
        self.down_proj = _linear(shape.neurons, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., K]."""
        return cast("Tensor", self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to what it read."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before, self.attention = nn.RMSNorm(shape.hidden, 1e-5), Attention(shape)
        self.between, self.mlp = nn.RMSNorm(shape.hidden, 1e-5), MLP(shape)

    def forward(self, x: Tensor, angles: Tensor, position: Tensor | None) -> Tensor:
        """See `Attention`."""
        x = x + self.attention(self.before(x), angles, position)
        return cast("Tensor", x + self.mlp(self.between(x)))


class Decoder(nn.Module):
    """Token ids [1, L] -> logits [1, L, V]; with `position` [1], one token after those of a full cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm, self.head = nn.RMSNorm(shape.hidden, 1e-5), _linear(shape.hidden, shape.vocabulary)

    def forward(self, ids: Tensor, position: Tensor | None = None) -> Tensor:
        """See the class."""
        at = torch.arange(ids.shape[1], device=ids.device) if position is None else position
        steps = torch.arange(0, self.shape.head, 2, device=ids.device) / self.shape.head
        angles = at[:, None] * 500000.0**-steps
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, angles, position)
        return cast("Tensor", self.head(self.norm(x)))
