"""How many rows a linear sees: what tells decoding (few, bound by weight bytes) from prefill (many, bound by FLOPs)."""

import math

import torch
from torch import fx

FEW_ROWS = 8
"""Up to this many rows the native kernels stream each weight once for all of them; above, GEMM takes over."""


def rows_of(x: fx.Node) -> int | None:
    """Rows of `x` [..., K] as captured: the product of its leading sizes. None where a size depends on data.

    Symbolic sizes count by their hint, and put no guard on the graph.
    """
    value: torch.Tensor = x.meta["example_value"]
    sizes = [size_hint(size) for size in value.shape[:-1]]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size as captured, without guarding on it; None for a size that depends on data."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else None


def has_few_rows(x: fx.Node) -> bool:
    """True where `x` was captured with at most `FEW_ROWS` rows."""
    rows = rows_of(x)
    return rows is not None and rows <= FEW_ROWS
