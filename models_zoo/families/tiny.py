"""What a tiny model of a family is: the model, and inputs of any batch and length that fit it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["decoder", "encoder", "encoder-decoder", "vision", "state-space"]

VOCAB = 256
HIDDEN = 64
INNER = 128
HEADS = 4
LAYERS = 2
POSITIONS = 256

Draw = Callable[[nn.Module, torch.Generator, int, int], dict[str, Tensor]]
"""(model, generator, batch, length) -> the keyword arguments of `model.forward`."""


@dataclass(frozen=True)
class Family:
    """How the tiny model of one family is built, and how its inputs are drawn."""

    name: str
    kind: Kind
    build: Callable[[], nn.Module]
    draw: Draw
    generates: bool = False


@dataclass(frozen=True)
class Tiny:
    """A tiny model with two layers, and a source of inputs for it.

    generates: whether `model.generate(**inputs(batch, length))` makes sense.
    """

    name: str
    model: nn.Module
    kind: Kind
    generates: bool
    draw: Draw

    def inputs(self, batch: int = 2, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """Keyword arguments for `model`; equal for equal arguments.

        `batch` rows; `length` tokens (int64) for models that read tokens. For images it is the height and
        width in units of 8 pixels where the model takes any size, and is ignored where it takes one.
        Floating-point inputs come in the dtype that the model's parameters have at the time of the call.
        """
        return self.draw(self.model, torch.Generator().manual_seed(seed), batch, length)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block with torch's CPU generator at `seed`, and put the generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw_tokens(model: nn.Module, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """{"input_ids": int64 [batch, length]}; ids 0 to 3 are left out, being padding and the like."""
    return {"input_ids": torch.randint(4, VOCAB, (batch, length), generator=generator)}


def draw_floats(model: nn.Module, generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers [*shape] in the dtype of the model's parameters."""
    return torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)
