"""What a pass is."""

from typing import Protocol

from torch import fx

from srrc.passes.context import Context


class Pass(Protocol):
    """A frozen dataclass whose fields are its options. Takes a graph, returns the graph to go on with.

    It may edit `gm` in place and return it; what it learned goes into `context`.
    """

    @property
    def name(self) -> str:
        """Short and stable: the name in logs and dumps."""
        ...

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Run on `gm`; the graph that comes back lints."""
        ...
