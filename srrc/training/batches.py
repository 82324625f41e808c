"""Training texts as batches of token windows, drawn by number: batch i is the same in every run and on every resume."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srrc.errors import OptionError


@dataclass(frozen=True, eq=False)
class Batches:
    """Windows of tokens, each domain as likely as any other.

    tokens: domain -> int64 [N], all of its texts one after another
    rows, length: of a batch
    seed: other seeds draw other batches
    """

    tokens: Mapping[str, Tensor]
    rows: int
    length: int
    seed: int = 0

    def __call__(self, number: int, worker: int = 0) -> Tensor:
        """Batch `number` of one of several workers: int64 [rows, length]."""
        draw = torch.Generator().manual_seed(seed_of(self.seed, number, worker))
        domains = list(self.tokens.values())
        windows = []
        for _ in range(self.rows):
            held = domains[int(torch.randint(len(domains), (), generator=draw))]
            start = int(torch.randint(len(held) - self.length + 1, (), generator=draw))
            windows.append(held[start : start + self.length])
        return torch.stack(windows)

    @property
    def digest(self) -> str:
        """sha256 of all tokens, by domain."""
        found = hashlib.sha256()
        for name in sorted(self.tokens):
            found.update(name.encode() + self.tokens[name].numpy().tobytes())
        return found.hexdigest()

    @property
    def count(self) -> int:
        """How many tokens there are to draw from."""
        return sum(len(held) for held in self.tokens.values())


def tokenised(
    tokenizer: Any, texts: Mapping[str, Sequence[str]], rows: int, length: int, seed: int = 0
) -> Batches:
    """The texts of each domain as `Batches`. Raises OptionError for a domain that is shorter than a window."""
    tokens = {}
    for domain, held in texts.items():
        ids = [token for text in held for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        if len(ids) < length:
            raise OptionError(
                f"{domain} has {len(ids)} tokens, fewer than one window of {length}; give more text"
            )
        tokens[domain] = torch.tensor(ids)
    if not tokens:
        raise OptionError("there is no text to train on; give at least one")
    return Batches(tokens, rows, length, seed)


def seed_of(*parts: int | str) -> int:
    """One seed out of several parts, unlike that of any neighbours."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
