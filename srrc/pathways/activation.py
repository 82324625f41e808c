"""Names an activation function from the nodes that compute it, whether one call or a formula written out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from srrc.pathways.patterns import is_call, operands, with_constant

UNKNOWN = frozenset(
    [
        "celu",
        "elu",
        "glu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "logsigmoid",
        "mish",
        "prelu",
        "relu6",
        "rrelu",
        "selu",
        "sigmoid",
        "softplus",
        "softsign",
        "tanh",
    ]
)
"""Pointwise activations that are recognised as such, but that no gated op computes."""


@dataclass(frozen=True)
class Activation:
    """`name`(x), computed by `nodes` (x excepted), the last of which has the value.

    name: silu, gelu, gelu_tanh, relu, relu2 (squared), quick_gelu; or None for one of `UNKNOWN`.
    """

    name: str | None
    x: fx.Node
    nodes: tuple[fx.Node, ...]


def read_activation(node: object) -> Activation | None:
    """The activation whose value `node` is, or None."""
    if not isinstance(node, fx.Node):
        return None
    return next((found for read in _READERS if (found := read(node)) is not None), None)


def _single_call(node: fx.Node) -> Activation | None:
    x = node.args[0] if node.args else None
    if node.op not in {"call_function", "call_method"} or not isinstance(x, fx.Node):
        return None
    if is_call(node, "silu") or is_call(node, "relu"):
        return Activation("silu" if is_call(node, "silu") else "relu", x, (node,))
    if is_call(node, "gelu"):
        return Activation("gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu", x, (node,))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return Activation(None, x, (node,)) if name in UNKNOWN else None


def _relu_squared(node: fx.Node) -> Activation | None:
    """pow(relu(x), 2), or relu(x) * relu(x) of the same node."""
    pair = operands(node, "pow")
    inner = pair[0] if pair and pair[1] == 2 else None
    product = operands(node, "mul")
    if product and product[0] is product[1]:
        inner = product[0]
    if not is_call(inner, "relu"):
        return None
    return Activation("relu2", inner.args[0], (inner, node))


def _sigmoid_gate(node: fx.Node) -> Activation | None:
    """X * sigmoid(x) is silu; x * sigmoid(1.702 x) is the quick GELU."""
    for x, gate in _both_ways(operands(node, "mul")):
        if not is_call(gate, "sigmoid"):
            continue
        inner = gate.args[0]
        if inner is x:
            return Activation("silu", x, (gate, node))
        scaled = with_constant(inner, "mul")
        if scaled and scaled[0] is x and math.isclose(scaled[1], 1.702, rel_tol=1e-6):
            return Activation("quick_gelu", x, (inner, gate, node))
    return None


def _gelu_tanh(node: fx.Node) -> Activation | None:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) in any order of its products and sums."""
    for half, one_plus in _both_ways(operands(node, "mul")):
        halved, shifted = with_constant(half, "mul"), with_constant(one_plus, "add")
        if (
            not halved
            or not shifted
            or halved[1] != 0.5
            or shifted[1] != 1.0
            or not is_call(shifted[0], "tanh")
        ):
            continue
        x, tanh = halved[0], shifted[0]
        scaled = with_constant(tanh.args[0], "mul")
        if not scaled or not math.isclose(scaled[1], math.sqrt(2 / math.pi), rel_tol=1e-6):
            continue
        for left, cubic in _both_ways(operands(scaled[0], "add")):
            weighted = with_constant(cubic, "mul")
            if left is not x or not weighted or not math.isclose(weighted[1], 0.044715, rel_tol=1e-6):
                continue
            cube = operands(weighted[0], "pow")
            if cube and cube[0] is x and cube[1] == 3:
                nodes = (half, weighted[0], cubic, scaled[0], tanh.args[0], tanh, one_plus, node)
                return Activation("gelu_tanh", x, nodes)
    return None


def _gelu_erf(node: fx.Node) -> Activation | None:
    """X 0.5 (1 + erf(x / sqrt(2))), as older models write it."""
    for half, one_plus in _both_ways(operands(node, "mul")):
        halved, shifted = with_constant(half, "mul"), with_constant(one_plus, "add")
        if not halved or not shifted or halved[1] != 0.5 or shifted[1] != 1.0:
            continue
        erf = shifted[0]
        scaled = erf.args[0] if erf.args and getattr(erf.target, "__name__", erf.target) == "erf" else None
        divided = operands(scaled, "div")
        if divided and divided[0] is halved[0] and isinstance(divided[1], float):
            if math.isclose(divided[1], math.sqrt(2), rel_tol=1e-6):
                assert isinstance(scaled, fx.Node)
                return Activation("gelu", halved[0], (half, scaled, erf, one_plus, node))
    return None


def _both_ways(pair: tuple[fx.Node, fx.Node] | None) -> tuple[tuple[fx.Node, fx.Node], ...]:
    if pair is None or not all(isinstance(each, fx.Node) for each in pair):
        return ()
    return pair, (pair[1], pair[0])


_READERS: tuple[Callable[[fx.Node], Activation | None], ...] = (
    _relu_squared,
    _sigmoid_gate,
    _gelu_tanh,
    _gelu_erf,
    _single_call,
)
