"""Names an activation function from the nodes that compute it, whether one call or a formula written out."""

import math
from dataclasses import dataclass

from torch import fx

from srrc.pathways.patterns import CANONICAL, called_name, is_call, is_number

Formula = str | float | tuple["Formula", ...]
"""`"x"` is the argument, a number a constant, and a tuple (operator, operands ...) a call."""

_CUBE: Formula = ("pow", "x", 3.0)
_TANH_FORMULA: Formula = (
    "mul",
    ("mul", 0.5, "x"),
    ("add", 1.0, ("tanh", ("mul", math.sqrt(2 / math.pi), ("add", "x", ("mul", 0.044715, _CUBE))))),
)
_TANH_FACTORED: Formula = (
    "mul",
    ("mul", 0.5, "x"),
    (
        "add",
        1.0,
        ("tanh", ("mul", ("mul", "x", 0.7978845608), ("add", 1.0, ("mul", ("mul", 0.044715, "x"), "x")))),
    ),
)
_ERF_FORMULA: Formula = (
    "mul",
    ("mul", "x", 0.5),
    ("add", 1.0, ("erf", ("div", "x", math.sqrt(2.0)))),
)

FORMULAS: tuple[tuple[str, Formula], ...] = (
    ("silu", ("silu", "x")),
    ("silu", ("mul", "x", ("sigmoid", "x"))),
    ("quick_gelu", ("mul", "x", ("sigmoid", ("mul", 1.702, "x")))),
    ("gelu_tanh", _TANH_FORMULA),
    ("gelu_tanh", _TANH_FACTORED),
    ("gelu", _ERF_FORMULA),
    ("relu2", ("pow", ("relu", "x"), 2.0)),
    ("relu2", ("mul", ("relu", "x"), ("relu", "x"))),
    ("relu", ("relu", "x")),
)
"""Every way in which an activation with a kernel is written; sums and products match in either order."""

UNKNOWN = frozenset({
    "celu", "elu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu",
    "relu6", "rrelu", "selu", "sigmoid", "softplus", "softsign", "tanh",
})  # fmt: skip
"""Pointwise activations that are recognised as such, but that no gated op computes."""


@dataclass(frozen=True)
class Activation:
    """`name`(x), computed by `nodes` (x excepted), the first of which has the value.

    name:   silu, gelu, gelu_tanh, relu, relu2 (squared), quick_gelu; or None where no gated op computes it
    detail: what it is, where it has no name
    """

    name: str | None
    x: fx.Node
    nodes: tuple[fx.Node, ...]
    detail: str = ""


def read_activation(node: object) -> Activation | None:
    """The activation whose value `node` is, or None."""
    if not isinstance(node, fx.Node) or node.op not in {"call_function", "call_method"} or not node.args:
        return None
    for name, formula in FORMULAS:
        nodes: list[fx.Node] = []
        x = _match(formula, node, None, nodes)
        if x is not None:
            calls = tuple(dict.fromkeys(nodes))
            # Under `dynamic=True` a constant may be an input, and then it is this function only by its hint.
            open_constants = any(is_number(a) for call in calls for a in call.args if isinstance(a, fx.Node))
            if open_constants:
                return Activation(None, x, calls, f"{name}, if its constants stay what they are")
            return Activation(name, x, calls)
    argument = node.args[0]
    if not isinstance(argument, fx.Node):
        return None
    if is_call(node, "gelu"):
        return Activation(
            "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu", argument, (node,)
        )
    name = called_name(node)
    return Activation(None, argument, (node,), name) if name in UNKNOWN else None


def _match(formula: Formula, value: object, x: fx.Node | None, nodes: list[fx.Node]) -> fx.Node | None:
    """What `"x"` stands for if `value` is `formula` of it (of `x`, where that is given), or None.

    Appends the calls it passes to `nodes`.
    """
    assert isinstance(formula, tuple)
    name, *operands = formula
    assert isinstance(name, str)
    if (
        not isinstance(value, fx.Node)
        or not _calls(value, name)
        or len(value.args) != len(operands)
        or value.kwargs
    ):
        return None
    orders = [value.args, value.args[::-1]] if name in {"add", "mul"} else [value.args]
    for arguments in orders:
        passed, bound = [value], x
        for operand, argument in zip(operands, arguments, strict=True):
            if isinstance(operand, tuple):
                bound = _match(operand, argument, bound, passed)
                if bound is None:
                    break
            elif operand == "x":
                if (
                    not isinstance(argument, fx.Node)
                    or is_number(argument)
                    or (bound is not None and bound is not argument)
                ):
                    break
                bound = argument
            elif not _is_constant(argument, float(operand)):
                break
        else:
            nodes += passed
            return bound
    return None


def _is_constant(value: object, expected: float) -> bool:
    if isinstance(value, int | float):
        return math.isclose(value, expected, rel_tol=1e-6)
    return is_number(value)


def _calls(node: fx.Node, name: str) -> bool:
    return is_call(node, name) if name in CANONICAL else called_name(node) == name
