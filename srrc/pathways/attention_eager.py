"""Reads attention that is written out: matmul, scale, soft cap, mask, softmax, dropout, matmul."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from srrc.pathways.patterns import argument, called_name, is_call, is_method, operands, with_number


@dataclass(frozen=True)
class Eager:
    """One attention call, however written; the fields are those of `attention.Attention`."""

    node: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    scale: float | fx.Node | None
    dropout_p: float | fx.Node
    softcap: float | fx.Node | None
    nodes: tuple[fx.Node, ...]


def read_eager(node: fx.Node) -> Eager | None:
    """The attention whose value `node` = matmul(softmax(...), v) is, or None.

    Read upwards from the second product; a soft cap must be c * tanh(scores / c).
    """
    pair = operands(node, "matmul")
    if pair is None or not isinstance(pair[1], fx.Node):
        return None
    weights: Any = pair[0]
    v = pair[1]
    nodes = [node]
    while is_method(weights, "to", "type_as", "float") or _is_no_dropout(weights):
        nodes.append(weights)
        weights = weights.args[0]
    if not is_call(weights, "softmax"):
        return None
    nodes.append(weights)
    scores = weights.args[0]
    scores, mask = _take_mask(scores, nodes)
    scores, softcap = _take_softcap(scores, nodes)
    scores, scale = _take_scale(scores, nodes)
    product = operands(scores, "matmul")
    if product is None or not is_method(product[1], "transpose", "mT") or not isinstance(product[0], fx.Node):
        return None
    k = product[1].args[0]
    if not isinstance(k, fx.Node) or set(product[1].args[1:]) not in ({2, 3}, {-1, -2}):
        return None
    assert isinstance(scores, fx.Node)
    nodes += [scores, product[1]]
    return Eager(
        node, product[0], k, v, mask, scale if scale is not None else 1.0, 0.0, softcap, tuple(nodes)
    )


def _is_no_dropout(node: object) -> bool:
    """A dropout in evaluation, which `normalise` leaves where its value is handed out."""
    if not isinstance(node, fx.Node) or called_name(node) != "dropout":
        return False
    return argument(node, 2, "training", default=True) is False


def _take_mask(scores: Any, nodes: list[fx.Node]) -> tuple[object, fx.Node | None]:
    pair = operands(scores, "add")
    if pair is None or not all(isinstance(each, fx.Node) for each in pair):
        return scores, None
    assert isinstance(scores, fx.Node)
    nodes.append(scores)
    return pair


def _take_softcap(scores: object, nodes: list[fx.Node]) -> tuple[object, float | fx.Node | None]:
    capped = with_number(scores, "mul")
    if capped is None or not is_call(capped[0], "tanh"):
        return scores, None
    divided = operands(argument(capped[0], 0, "input"), "div")
    if divided is None or divided[1] != capped[1]:
        return scores, None
    assert isinstance(scores, fx.Node)
    nodes += [scores, capped[0], capped[0].args[0]]  # type: ignore[list-item]
    return divided[0], capped[1]


def _take_scale(scores: object, nodes: list[fx.Node]) -> tuple[object, float | fx.Node | None]:
    pair = operands(scores, "mul")
    if pair is None:
        pair = operands(scores, "div")
        if pair is None or not isinstance(pair[1], int | float):
            return scores, None
        pair = (pair[0], 1.0 / pair[1])
    if not is_call(pair[0], "matmul"):
        return scores, None
    assert isinstance(scores, fx.Node)
    nodes.append(scores)
    return pair
