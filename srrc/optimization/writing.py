"""Judges the decoder of an encoder-decoder by what it writes itself, once its encoder has read something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srrc.backends.onnx.decoding import Step
from srrc.backends.onnx.interfaces.base import BATCH, ENCODER_SEQUENCE, Interface, empty_past
from srrc.backends.onnx.interfaces.draw import draw
from srrc.backends.onnx.session import Session
from srrc.optimization.checks import eager
from srrc.optimization.quality import Extras, Quality, of_values
from srrc.optimization.reader import Calls
from srrc.optimization.settings import Settings

SOURCES = 4
"""What the encoder reads: pieces of text, or random inputs for an encoder of something else."""


@dataclass(frozen=True, eq=False)
class Written:
    """tokens: int64 [SOURCES, n], the first being the decoder's start; inputs: those of the call that gave the last."""

    tokens: Tensor
    inputs: Mapping[str, Tensor]


class WritingReader:
    """For the decoder's file.

    encoder, decoder: both files' interfaces, around one model
    windows:          held-out text, int64 [1, length] each; without any, the encoder gets random inputs
    """

    def __init__(
        self, encoder: Interface, decoder: Interface, settings: Settings, windows: Sequence[Tensor]
    ) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._settings, self._windows = settings, windows

    def _sources(self) -> dict[str, Tensor]:
        sizes = {BATCH: SOURCES, ENCODER_SEQUENCE: self._settings.prefill}
        if not self._windows:
            return draw(self._encoder, sizes)
        text = torch.cat([*self._windows], 1)[0]
        length = min(self._settings.prefill, len(text) // SOURCES)
        pieces = text[: SOURCES * length].reshape(SOURCES, length)
        return draw(self._encoder, sizes | {ENCODER_SEQUENCE: length}) | {"input_ids": pieces}

    @cached_property
    def _read(self) -> dict[str, Tensor]:
        """The decoder's inputs that follow from what was read: the same in each of its calls."""
        sources = self._sources()
        found = eager(self._encoder, sources)
        made = {
            name: found[name.replace("past_key_values", "present")]
            for name in self._decoder.example
            if ".encoder." in name
        }
        return (
            made | {"encoder_attention_mask": sources["attention_mask"]}
            if "attention_mask" in sources
            else made
        )

    def _first(self, tokens: Tensor) -> dict[str, Tensor]:
        """The inputs of a call without a past, in the interface's order. tokens: int64 [SOURCES, n]."""
        given = empty_past(self._decoder.example, len(tokens)) | self._read | {"input_ids": tokens}
        return {name: given[name] for name in self._decoder.example}

    def _greedy(self, step: Step, new_tokens: int) -> Written:
        tokens = self._decoder.example["input_ids"][:1, :1].expand(SOURCES, 1)
        inputs = self._first(tokens)
        while True:
            outputs = step(inputs)
            tokens = torch.cat((tokens, outputs["logits"][:, -1:].argmax(-1)), 1)
            if tokens.shape[1] > new_tokens:
                return Written(tokens, inputs)
            own = {
                name: outputs[name.replace("past_key_values", "present")]
                for name in inputs
                if ".decoder." in name
            }
            inputs = {**inputs, "input_ids": tokens[:, -1:], **own}

    @cached_property
    def _written(self) -> Written:
        wanted = max(self._settings.past + 1, self._settings.new_tokens)
        longest = getattr(getattr(self._decoder.module.model, "config", None), "max_target_positions", None)
        return self._greedy(lambda inputs: eager(self._decoder, inputs), min(wanted, longest or wanted))

    def calls(self) -> Sequence[Calls]:
        """Single tokens, each after what was written before it."""
        inputs = self._written.inputs
        rows = range(SOURCES)
        return [
            Calls("decode", [{name: each[row : row + 1] for name, each in inputs.items()} for row in rows])
        ]

    def tokens(self, session: Session, extra: Mapping[str, Tensor]) -> tuple[int, int]:
        """Greedy, after each of what was read."""
        count = min(self._settings.new_tokens, self._written.tokens.shape[1] - 1)
        found = self._greedy(lambda inputs: session.run({**inputs, **extra}), count).tokens
        return SOURCES, int((found == self._written.tokens[:, : count + 1]).all(1).sum())

    def quality(self, dense: Session, gated: Session, extras: Extras) -> list[Quality]:
        """The drift of the logits over all that was written."""
        return of_values("logits", dense, gated, [self._first(self._written.tokens[:, :-1])], extras)
