"""Domains of text, found online: contexts that lie close together share what was learned about them.

A context is a vector of unit length. Each domain is the mean of its contexts. A context joins the nearest domain if
their cosine is at least `CLOSE`, and founds one of its own otherwise: sequential k-means with a radius (MacQueen 1967;
the leader algorithm, Hartigan 1975). Their number is bounded: the one that was used longest ago makes room.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

CLOSE = 0.5
"""Cosine from which on a context is of a domain. 180 held-out pieces of 128 tokens, of documentation, essays and
arithmetic in turn, made 8 domains that way: 96% of the pieces found theirs known, and 96% were of their domain's kind.
At 0.3: 6 domains, 95% of their kind; at 0.7: 21 and 99%, with 88% known."""

MOST = 64
"""Domains that are kept."""

_WEIGHT = 64
"""A domain's mean moves by at least 1 / _WEIGHT with each context: domains drift too."""


@dataclass
class Domain:
    """Mean of its contexts (float32 [D], unit length), how many there were, and when one was seen last."""

    name: int
    mean: Tensor
    seen: int = 1
    last: int = 0


@dataclass
class Domains:
    """All domains of one history. `clock` counts contexts."""

    known: list[Domain] = field(default_factory=list)
    clock: int = 0
    named: int = 0

    def nearest(self, context: Tensor) -> tuple[Domain, float] | None:
        """The nearest domain and the cosine with it; None where there is none yet."""
        if not self.known:
            return None
        cosines = torch.stack([domain.mean for domain in self.known]) @ context
        best = int(cosines.argmax())
        return self.known[best], float(cosines[best])

    def near(self, context: Tensor) -> Domain | None:
        """The domain that the context would join, None where it would found one. Nothing is moved."""
        found = self.nearest(context)
        return None if found is None or found[1] < CLOSE else found[0]

    def place(self, context: Tensor) -> tuple[Domain, bool]:
        """The domain of a context, and whether it was known before. Raises ValueError for one that is not finite."""
        if not bool(context.isfinite().all()):
            raise ValueError("a context that is not finite belongs to no domain")
        self.clock += 1
        domain = self.near(context)
        if domain is not None:
            domain.seen += 1
            step = max(1 / domain.seen, 1 / _WEIGHT)
            domain.mean = torch.nn.functional.normalize(domain.mean + step * (context - domain.mean), dim=0)
            domain.last = self.clock
            return domain, True
        if len(self.known) >= MOST:
            self.known.remove(min(self.known, key=lambda domain: domain.last))
        domain = Domain(self.named, context.clone(), last=self.clock)
        self.named += 1
        self.known.append(domain)
        return domain, False
