"""Brings a Dynamo graph into one canonical spelling, so that every finder can stay simple."""

from dataclasses import dataclass

from torch import fx

from srrc.passes.context import Context


@dataclass(frozen=True)
class Normalise:
    """Same values, same aliasing, same order of side effects; idempotent."""

    name: str = "normalise"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        return gm
