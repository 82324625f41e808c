"""The tokens that every variant works on: prompts to continue, and held-out windows to read, by domain."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from srrc.bench.settings import Settings
from srrc.errors import ModelError
from srrc.models_zoo import texts
from srrc.models_zoo.hugging_face import quiet_transformers

Row = TypeVar("Row")

RANDOM = "random tokens"
"""The one domain of a model without a tokenizer."""


@dataclass(frozen=True)
class Workload:
    """prompts: batches of token ids, `prefill_length` each. windows: domain -> token ids, one window long each, whole
    batches of them.

    No token is in two of them, and none was in the calibration part of its domain.
    """

    prompts: tuple[tuple[tuple[int, ...], ...], ...]
    windows: Mapping[str, tuple[tuple[int, ...], ...]]


def make_workload(model: Any, tokenizer: Any, settings: Settings) -> Workload:
    """Cut the held-out texts of the zoo, spread evenly over each domain; random tokens without a tokenizer.

    Raises ModelError for a model that writes no text, or a domain with too few tokens.
    """
    if not (hasattr(model, "can_generate") and model.can_generate()):
        raise ModelError(f"{type(model).__name__} writes no text; the bench measures models that do")
    if settings.tasks and not hasattr(tokenizer, "decode"):
        raise ModelError("the model came without a tokenizer, so there is nothing to ask it requests with")
    wanted = settings.prompts * settings.batch
    per_domain = -(-settings.heldout_tokens // (settings.new_tokens * settings.batch)) * settings.batch
    # The last token of a window is only ever a target.
    window = settings.cache_length + 1
    domains = _domains(model, tokenizer, wanted * settings.prefill_length + per_domain * window)
    share = -(-wanted // len(domains))
    prompts: list[list[tuple[int, ...]]] = []
    windows = {}
    for name, tokens in domains.items():
        lengths = [window] * per_domain + [settings.prefill_length] * share
        pieces = _spread(name, tokens, lengths)
        windows[name] = tuple(pieces[:per_domain])
        prompts.append(pieces[per_domain:])
    in_turn = [prompt for row in zip(*prompts, strict=True) for prompt in row]
    return Workload(tuple(batches(in_turn[:wanted], settings.batch)), windows)


def batches(rows: Sequence[Row], size: int) -> Iterator[tuple[Row, ...]]:
    """Neighbours together, `size` at a time."""
    for start in range(0, len(rows), size):
        yield tuple(rows[start : start + size])


def _domains(model: Any, tokenizer: Any, needed: int) -> dict[str, Sequence[int]]:
    if not hasattr(tokenizer, "decode"):
        draw = random.Random(0)  # noqa: S311 - no secret
        vocabulary = model.config.get_text_config().vocab_size
        return {RANDOM: [draw.randrange(vocabulary) for _ in range(2 * needed)]}
    found: dict[str, Sequence[int]] = {}
    with quiet_transformers():  # a whole domain is longer than any context
        for domain in texts.domains():
            text = "\n\n".join(texts.split(domain, "heldout"))
            found[domain] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _spread(name: str, tokens: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Pieces of these lengths with equal gaps between them."""
    spare = len(tokens) - sum(lengths)
    if spare < 0:
        raise ModelError(
            f"the domain {name!r} has {len(tokens)} held-out tokens, and {sum(lengths)} are needed"
        )
    gap = spare // len(lengths)
    start, pieces = 0, []
    for length in lengths:
        pieces.append(tuple(tokens[start : start + length]))
        start += length + gap
    return pieces
