"""The texts that pass through one compiled model, and what the history knows of each.

A call of many tokens begins a request; the calls after it, of few, go on with it. A request's token embeddings are
pooled as they come, and looked up in the history once there are `FEW`, and again whenever their number has doubled, up
to `PIECE`; from then on each `PIECE` tokens are a text of their own, since a long answer may change its subject. A text
of fewer than `FOUND` tokens joins a domain that is there, and founds none: it tells too little.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srrc.control.history import History, Learned
from srrc.relevance.context import ContextBasis, pooled

FEW, FOUND, PIECE = 16, 64, 128


class Stream:
    """One compiled model's. Thread-safe; requests that overlap in time are taken for one text.

    basis:   that contexts are measured in; without one, all texts of a context are of one domain
    context: the name of the context to begin in
    keep:    called now and then, to write the history to its file
    learned: what the history knows of the text at hand
    """

    def __init__(
        self,
        history: History,
        basis: ContextBasis | None,
        context: str,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.history, self.basis, self.keep = history, basis, keep
        self._lock = threading.Lock()
        self._ids: list[Tensor] = []
        self._tokens, self._next, self._counted = 0, FEW, False
        self.enter(context)

    def enter(self, context: str) -> None:
        """Go on in another context."""
        with self._lock:
            self.context = context
            self.learned: Learned = self.history.space(context).rest
            self._begin()

    def saw(self, ids: Tensor, table: Tensor) -> bool:
        """Take in the tokens of one call. ids: int [..., L]; table: [V, K]. Returns whether anything was looked up."""
        if self.basis is None or ids.dim() == 0 or table.shape[1] != len(self.basis.mean):
            return False
        with self._lock:
            if ids.shape[-1] >= FEW:
                self._begin()
            self._ids.append(ids.detach().clone())
            self._tokens += ids.numel()
            if self._tokens < self._next:
                return False
            self._look_up(self.basis, table.detach())
            return True

    def _look_up(self, basis: ContextBasis, table: Tensor) -> None:
        with torch.no_grad():
            whole = pooled(table, torch.cat([each.reshape(-1) for each in self._ids]))
            context = basis.context(whole.to(basis.mean.device))
        if not bool(context.isfinite().all()):
            self._begin()
            return
        enough = self._tokens >= FOUND
        find = self.history.place if enough else self.history.find
        self.learned = find(self.context, context)
        if not self._counted and (enough or self.learned is not self.history.space(self.context).rest):
            self._counted = True
            self.history.count(self.learned)
        while self._next <= self._tokens:
            self._next *= 2
        if self._tokens >= PIECE:
            self._ids, self._tokens, self._next = [], 0, PIECE

    def _begin(self) -> None:
        self._ids, self._tokens, self._next, self._counted = [], 0, FEW, False


def told(streams: Sequence[Stream]) -> dict[str, float | int | str | None]:
    """What `stats` says of the histories of a model's streams."""
    histories = list({id(stream.history): stream.history for stream in streams}.values())
    hits, misses = sum(h.hits for h in histories), sum(h.misses for h in histories)
    return {
        "context": streams[-1].context if streams else None,
        "domains": sum(len(h.space(s.context).domains.known) for h, s in {(s.history, s) for s in streams}),
        "hits": hits,
        "misses": misses,
        "hit_rate": hits / (hits + misses) if hits + misses else None,
        "evictions": sum(h.evictions for h in histories),
        "seconds_saved": sum(h.seconds_saved for h in histories),
    }
