"""The description of one exported file."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

BATCH, SEQUENCE = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
ENCODER_SEQUENCE = "encoder_sequence_length"

SIZES = {BATCH: 2, SEQUENCE: 3, PAST: 5, TOTAL: 8, ENCODER_SEQUENCE: 7}
"""Sizes of the axes in examples: none is one, and no two are equal, so that a tracer cannot mistake them."""


@dataclass(frozen=True, eq=False)
class Interface:
    """One file to be written.

    name:    of the file, without ".onnx"
    module:  called with the example's tensors in order, gives a tuple of tensors; it holds the user's model as `model`
    example: input name -> tensor of the sizes in `SIZES`
    axes:    input name -> {dimension: name of the axis}, for those that may differ from call to call
    outputs: names of what the module gives
    """

    name: str
    module: nn.Module
    example: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


class Wrapped(nn.Module):
    """A user's model behind a flat signature. Subclasses write `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def empty_past(example: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """The cache before the first call: for each of the example's `past_key_values` a tensor without positions."""
    found = {}
    for name, tensor in example.items():
        if name.startswith("past_key_values."):
            heads, width = tensor.shape[1], tensor.shape[3]
            found[name] = tensor.new_zeros((batch, heads, 0, width))
    return found
