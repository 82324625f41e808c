"""A gated region: a part of a graph that a gate lets run or not. Backend-neutral: each backend lowers it its own way.

In a graph it is one node, `gated_region(keep, subgraph, bypass, *operands)`, whose subgraph is a module that the
graph holds. What is written here is the truth of it; a backend calls the subgraph only where some row is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gated_region(keep: Tensor, subgraph: Callable[..., Tensor], bypass: Tensor, *operands: object) -> Tensor:
    """`subgraph(*operands)` for the rows that are kept, `bypass` for the others.

    keep bool [..., 1]; bypass and what the subgraph gives [..., H], of one dtype. Up to `gate.MAX_ROWS` rows decide
    together: then all are kept, or none.
    """
    return torch.where(keep, subgraph(*operands), bypass)
