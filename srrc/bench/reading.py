"""What one variant made of held-out text, token by token: its loss, and how far it is from the reference."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from srrc.relevance.drift import measure


@dataclass
class Read:
    """A number a token, in reading order; of kl and same, none without a reference.

    loss:   -log p(token), nats
    kl:     KL(reference, this) of the distribution that the token was judged by, nats
    same:   1 where the likeliest token is the reference's
    apart:  largest absolute difference of a logit from the reference's
    """

    loss: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    apart: float | None = None


def read_logits(rows: Iterable[tuple[Tensor, int]], reference: Path, *, write: bool) -> Read:
    """Judge logits [V] by the token that came, and against the logits in the file `reference`, if it exists.

    write: make that file instead. It holds the rows one after another, in their own dtype.
    """
    read = Read()
    with _Writer(reference if write else None) as writer:
        against: Iterator[Tensor] | None = None
        for logits, token in rows:
            writer.add(logits)
            read.loss.append(
                float(torch.nn.functional.cross_entropy(logits.float()[None], torch.tensor([token])))
            )
            if not write and reference.is_file():
                against = against or _rows(reference, logits)
                _compare(read, next(against), logits)
    return read


def _compare(read: Read, dense: Tensor, logits: Tensor) -> None:
    nats = measure(dense[None], logits[None], "logits").total
    read.kl.append(nats if math.isfinite(nats) else 1e9)  # JSON knows no infinity
    read.same.append(int(dense.argmax() == logits.argmax()))
    apart = float((dense.float() - logits.float()).abs().nan_to_num(nan=1e9).max())
    read.apart = max(apart, read.apart or 0.0)


class _Writer:
    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Tensor) -> None:
        if self._file is not None:
            self._file.write(row.detach().contiguous().view(torch.uint8).numpy().tobytes())


def _rows(path: Path, like: Tensor) -> Iterator[Tensor]:
    """The rows of a file, one at a time: all of them together would count as this process's memory."""
    size = like.numel() * like.element_size()
    with path.open("rb") as file:
        while len(chunk := file.read(size)) == size:
            yield torch.frombuffer(bytearray(chunk), dtype=like.dtype)
