"""Which output of a graph tells how far a routed answer is from the dense one."""

from collections.abc import Sequence

import torch
from torch import fx

from srrc.pathways.base import Pathway


def drifting_output(gm: fx.GraphModule, pathways: Sequence[Pathway]) -> tuple[int, bool] | None:
    """(position among the graph's outputs, whether it is logits); None where no output is of floating point.

    A vocabulary head tells logits: they are the output with its number of entries. Otherwise it is the last
    floating-point output (caches come before it).
    """
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    values = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    widths = {pathway.units for pathway in pathways if pathway.kind == "vocab"}
    last = None
    for position, node in enumerate(values):
        value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0:
            if value.shape[-1] in [*widths]:
                return position, True
            last = (position, False)
    return last
