"""A small language model with every gate in it, captured as calibration does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.gated_model import GatedModel
from srrc.relevance.information import Output
from srrc.relevance.replay import Replay


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(0.1 * self.mix(x).cumsum(1))
        normed = self.norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class SmallModel(nn.Module):
    def __init__(self, vocabulary: int = 50, width: int = 24, hidden: int = 40, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = 4 * self.head(x)
        return logits


class Setup:
    """`replay` of the gated graph, its `output`, and `arguments()` of a batch."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.gated = GatedModel(model, example)
        self.gated.insert(lambda gate: not gate.endswith("/neuron"), {})
        self.replay = Replay(self.gated.gm, self.gated.gates)
        self.output: Output = self.gated.output

    def batch(self, seed: int) -> Tensor:
        return torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(seed))

    def arguments(self, seed: int = 0) -> list[Any]:
        with torch.no_grad():
            return list(self.gated.arguments({"input_ids": self.batch(seed)}))


@pytest.fixture
def make_setup() -> Callable[[nn.Module], Setup]:
    """`make_setup(model)` captures a model that reads input_ids [2, 20]."""

    def make(model: nn.Module) -> Setup:
        with torch.no_grad():
            return Setup(model.eval(), {"input_ids": torch.zeros(2, 20, dtype=torch.int64)})

    return make


@pytest.fixture
def small(make_setup: Callable[[nn.Module], Setup]) -> Setup:
    torch.manual_seed(0)
    return make_setup(SmallModel())
