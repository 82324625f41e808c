"""What a pathway is: a candidate piece of computation with a place, a cost and a bypass.

The kinds themselves are one file each beside this one; this file knows none of them.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import sympy
from torch import fx

Kind = Literal["residual", "neuron", "channel", "vocab", "attention", "expert"]


class Bypass(enum.StrEnum):
    """What stands in for a pathway that is not computed."""

    IDENTITY = "identity"
    """The residual stream goes on unchanged."""
    ZERO = "zero"
    """The unit adds nothing to the sum it belongs to."""
    COARSE = "coarse"
    """A low-rank approximation of the same value."""


@dataclass(frozen=True)
class Cost:
    """C(p): floating-point operations and bytes moved, over the symbols of the graph it was read from.

    `flops` counts a multiply-add as two; `bytes` counts every weight once and every activation once.
    """

    flops: sympy.Expr
    bytes: sympy.Expr

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(sympy.expand(self.flops + other.flops), sympy.expand(self.bytes + other.bytes))

    @property
    def symbols(self) -> frozenset[sympy.Symbol]:
        """The symbols (batch, sequence, cache length) that `at` needs a value for."""
        return frozenset(self.flops.free_symbols | self.bytes.free_symbols)

    def at(self, bindings: Mapping[sympy.Symbol, int] | Mapping[str, int]) -> tuple[float, float]:
        """`(flops, bytes)` with every symbol replaced, by itself or by its name.

        Raises KeyError naming the first symbol that `bindings` has no value for.
        """
        named = {str(symbol): value for symbol, value in bindings.items()}
        values = {symbol: named[str(symbol)] for symbol in sorted(self.symbols, key=str)}
        return float(self.flops.subs(values)), float(self.bytes.subs(values))


ZERO_COST = Cost(sympy.Integer(0), sympy.Integer(0))


@dataclass(frozen=True)
class Linear:
    """One linear map `y = x W^T + b` of the graph, whichever way the model wrote it.

    `node` computes y [..., N] from `x` [..., K]. `weight` is the placeholder: [N, K], or [K, N] when
    `transposed` (GPT-2's Conv1D). `rows` is set where this map is only the outputs `rows[0]:rows[1]` of a
    fused weight (Phi-3's gate_up): `out_features` is then their number and `weight` still the whole.
    """

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    fqn: str
    in_features: int
    out_features: int
    transposed: bool = False
    rows: tuple[int, int] | None = None


class Site(Protocol):
    """The kind's own description of what was found: a frozen dataclass such as `channel.ChannelGroup`."""


@dataclass(frozen=True)
class Pathway:
    """One candidate piece of computation.

    kind:    which file found it, and which gate can stand on it
    place:   a stable id, the fully qualified name of its first weight: equal in every graph of one model
    site:    the kind's own dataclass, with the nodes a gate is built from
    nodes:   every node that would be replaced or skipped, in graph order
    inputs:  what they read from outside, parameters excepted
    output:  the node whose value they produce (for several, the last)
    weights: fully qualified names of the parameters they read
    units:   how many gateable units there are (channels, neurons, vocabulary entries, experts; a branch is 1)
    cost:    of computing all of it
    bypass:  what stands in for a unit that is not computed
    """

    kind: Kind
    place: str
    site: Site
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    output: fx.Node
    weights: tuple[str, ...]
    units: int
    cost: Cost
    bypass: Bypass
