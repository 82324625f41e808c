"""Which reader judges a file."""

from typing import Any

from torch import nn

from srrc.backends.onnx.interfaces import encoder_decoder
from srrc.backends.onnx.interfaces.base import Interface
from srrc.optimization.reader import OneCallReader, Reader, TextReader
from srrc.optimization.settings import Settings
from srrc.optimization.texts import heldout, tokenizer_in
from srrc.optimization.writing import WritingReader

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""What an encoder of text takes."""


def reader_of(model: nn.Module | None, tokenizer: Any, interface: Interface, settings: Settings) -> Reader:
    """Who judges a file.

    A decoder goes through text token by token, an encoder reads it at once, the decoder of an encoder-decoder writes
    about it; everything else gets random inputs.
    """
    known: Any = model
    module: Any = interface.module
    if "past_key_values.0.key" in interface.example:
        vocabulary = int(module.vocabulary if known is None else known.config.get_text_config().vocab_size)
        held = heldout(tokenizer, vocabulary, settings.heldout_tokens, settings.prompts)
        return TextReader(interface, settings, held)
    writes = model is not None and "past_key_values.0.encoder.key" in interface.example
    reads = encoder_decoder.interfaces(known)[0] if writes else interface
    text = reads.example.keys() <= TEXT_INPUTS and tokenizer_in(tokenizer) is not None
    windows = heldout(tokenizer, 0, settings.heldout_tokens, 0).windows if text else ()
    if writes:
        return WritingReader(reads, interface, settings, windows)
    return OneCallReader(interface, settings, windows)
