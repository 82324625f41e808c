"""How many rows a linear sees: what tells decoding (few, bound by weight bytes) from prefill (many, bound by FLOPs)."""

import math
from collections.abc import Mapping

import sympy
import torch
from torch import fx

FEW_ROWS = 8
"""Up to this many rows the native kernels stream each weight once for all of them; above, GEMM takes over."""


def rows_of(x: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> int | None:
    """Rows of `x` [..., K]: the product of its leading sizes. None where a size depends on data."""
    value: torch.Tensor = x.meta["example_value"]
    rows = [size_of(size, sizes) for size in value.shape[:-1]]
    return None if None in rows else math.prod(size for size in rows if size is not None)


def size_of(size: int | torch.SymInt, sizes: Mapping[sympy.Symbol, int]) -> int | None:
    """A size with its symbols replaced by `sizes`, or else as captured; it puts no guard on the graph.

    None for a size that depends on data.
    """
    if isinstance(size, int):
        return size
    value = size.node.expr.subs(sizes)
    if value.is_Integer:
        return int(value)
    hint = size.node.hint
    return int(hint) if hint is not None else None


def has_few_rows(x: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> bool:
    """True where `x` has at most `FEW_ROWS` rows."""
    rows = rows_of(x, sizes)
    return rows is not None and rows <= FEW_ROWS


def has_fixed_rows(x: fx.Node) -> bool:
    """True where the rows of `x` are the same in every call of its graph."""
    return all(isinstance(size, int) for size in x.meta["example_value"].shape[:-1])
