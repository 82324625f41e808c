"""Judges files by what they make of held-out text, or of random inputs where a model reads none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srrc.backends.onnx.decoding import first_inputs, next_inputs
from srrc.backends.onnx.interfaces.base import BATCH, ENCODER_SEQUENCE, PAST, SEQUENCE, Interface
from srrc.backends.onnx.interfaces.draw import draw
from srrc.backends.onnx.session import Session
from srrc.optimization.checks import compare_tokens, eager
from srrc.optimization.quality import Extras, Quality, of_decoder, of_values
from srrc.optimization.settings import Settings
from srrc.optimization.texts import Heldout


@dataclass(frozen=True, eq=False)
class Calls:
    """Inputs of one phase, to be timed in turn: what a gate decides depends on them."""

    phase: str
    feeds: Sequence[Mapping[str, Tensor]]


class Reader(Protocol):
    """What judging a file takes."""

    def calls(self) -> Sequence[Calls]:
        """Inputs to time, by phase; the last phase is the one whose latency a budget is a share of."""
        ...

    def tokens(self, session: Session, extra: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """(prompts, how many are continued with eager's tokens); None for a model that writes none."""
        ...

    def quality(self, dense: Session, gated: Session, extras: Extras) -> list[Quality]:
        """How far the gated file is from the dense one, for each of what it gets beside its own inputs."""
        ...


class TextReader:
    """For a decoder with a cache."""

    def __init__(self, interface: Interface, settings: Settings, held: Heldout) -> None:
        self._interface, self._settings, self._held = interface, settings, held
        self._calls: list[Calls] = []

    def calls(self) -> Sequence[Calls]:
        """Prompts, and single tokens after a cache that eager has filled with the text before them."""
        if not self._calls:
            settings, example = self._settings, self._interface.example
            text = torch.cat(self._held.windows, 1)
            length = min(settings.prefill, text.shape[1])
            starts = range(0, text.shape[1] - length + 1, length)
            prompts = [text[:, start : start + length] for start in starts][:4]
            self._calls.append(Calls("prefill", [first_inputs(example, each) for each in prompts]))
            self._calls.append(Calls("decode", self._steps(text)))
        return self._calls

    def _steps(self, text: Tensor) -> list[dict[str, Tensor]]:
        """Single tokens far apart in the text, each after the `past` tokens before it."""
        past, count = self._settings.past, 8
        length = text.shape[1]
        starts = [index * max(1, length - past - 1) // count for index in range(count)]
        found = []
        for start in dict.fromkeys(starts):
            window = text[:, start : start + past + 1]
            if window.shape[1] == 1:
                found.append(first_inputs(self._interface.example, window))
                continue
            before = first_inputs(self._interface.example, window[:, :-1])
            found.append(next_inputs(before, eager(self._interface, before), window[:, -1]))
        return found

    def tokens(self, session: Session, extra: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Greedy, from prompts of several lengths."""
        return compare_tokens(self._interface, session, self._held.prompts, self._settings.new_tokens, extra)

    def quality(self, dense: Session, gated: Session, extras: Extras) -> list[Quality]:
        """Perplexity and drift."""
        return of_decoder(self._interface, dense, gated, self._held.windows, extras)


class OneCallReader:
    """For any other model. windows: text to read, int64 [1, length] each; without any, inputs are random."""

    def __init__(self, interface: Interface, settings: Settings, windows: Sequence[Tensor]) -> None:
        self._interface, self._settings, self._windows = interface, settings, windows

    def _feeds(self, batch: int, length: int, past: int) -> list[dict[str, Tensor]]:
        sizes = {BATCH: batch, SEQUENCE: length, ENCODER_SEQUENCE: length, PAST: past}
        if not self._windows:
            return [draw(self._interface, sizes, seed) for seed in range(4)]
        starts = [(window, at) for window in self._windows for at in range(0, window.shape[1], length)]
        pieces = [window[:, at : at + length] for window, at in starts]
        return [
            {
                **draw(self._interface, sizes | {BATCH: 1, SEQUENCE: width, ENCODER_SEQUENCE: width}),
                "input_ids": piece,
            }
            for piece in pieces
            for width in [piece.shape[1]]
        ]

    def calls(self) -> Sequence[Calls]:
        """One phase, of one size."""
        feeds = self._feeds(1, self._settings.prefill, self._settings.past)
        alike = [
            feed for feed in feeds if all(feed[name].shape == each.shape for name, each in feeds[0].items())
        ]
        return [Calls("call", alike[:4])]

    def tokens(self, session: Session, extra: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """None."""
        return None

    def quality(self, dense: Session, gated: Session, extras: Extras) -> list[Quality]:
        """The drift of the first output."""
        return of_values(self._interface.outputs[0], dense, gated, self._feeds(2, 64, 0), extras)
