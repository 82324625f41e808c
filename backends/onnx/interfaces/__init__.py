"""What an exported graph takes and gives: flat tensors under the names that other programs know.

One file a kind of model. The names are those of Optimum and of ONNX Runtime GenAI.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from srrc.backends.onnx.interfaces import decoder, encoder_decoder, plain
from srrc.backends.onnx.interfaces.base import Interface

__all__ = ["Interface", "interfaces"]


def interfaces(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> tuple[Interface, ...]:
    """The files that `model` becomes: one, or for an encoder-decoder one for each half.

    inputs: keyword arguments of one call, for a model whose inputs cannot be told from its class
    Raises ModelError where they cannot be told and are not given.
    """
    known: Any = model
    if inputs is None and encoder_decoder.fits(model):
        return encoder_decoder.interfaces(known)
    if inputs is None and decoder.fits(model):
        return (decoder.interface(known),)
    return (plain.interface(model, plain.example(model) if inputs is None else inputs),)
