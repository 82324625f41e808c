"""What a file is judged on: held-out text in windows, and prompts."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srrc.models_zoo import texts
from srrc.models_zoo.hugging_face import quiet_transformers

WINDOW = 256
"""Tokens that are read at once."""

DOMAINS = ("docs", "essays")


@dataclass(frozen=True, eq=False)
class Heldout:
    """windows: int64 [1, WINDOW] each, no token in two of them; prompts: of 16 to 48 tokens."""

    windows: tuple[Tensor, ...]
    prompts: tuple[tuple[int, ...], ...]


def tokenizer_in(given: Any) -> Any:
    """The tokenizer of text that was given, or is part of the processor that was; None where there is none."""
    found = getattr(given, "tokenizer", given)
    return found if callable(found) and hasattr(found, "decode") else None


def heldout(tokenizer: Any, vocabulary: int, tokens: int, prompts: int) -> Heldout:
    """Spread over the held-out halves of two domains of the zoo; random tokens where there is no tokenizer."""
    stream = _stream(tokenizer, vocabulary)
    count = max(1, tokens // WINDOW)
    lengths = [WINDOW] * count + [16 + 32 * index // max(1, prompts) for index in range(prompts)]
    gap = max(0, len(stream) - sum(lengths)) // len(lengths)
    pieces, start = [], 0
    for length in lengths:
        pieces.append(tuple(stream[start : start + length]))
        start += length + gap
    return Heldout(tuple(torch.tensor([piece]) for piece in pieces[:count]), tuple(pieces[count:]))


def _stream(tokenizer: Any, vocabulary: int) -> list[int]:
    tokenizer = tokenizer_in(tokenizer)
    if tokenizer is None:
        draw = random.Random(0)  # noqa: S311  (no secret)
        return [draw.randrange(vocabulary) for _ in range(1 << 16)]
    with quiet_transformers():  # a whole domain is longer than any context
        joined = "\n\n".join(text for domain in DOMAINS for text in texts.split(domain, "heldout"))
        found: list[int] = tokenizer(joined, add_special_tokens=False)["input_ids"]
    return found
