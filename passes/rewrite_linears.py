"""Brings every linear map over a parameter into the form `linear(x, W, b)` or `linear(x, W.t(), b)`.

The rewrites call the very kernels the originals called (`linear` itself is written with `matmul` and
`addmm`), so that the values stay the same to the last bit.
"""

from typing import Any

import torch
from torch import fx
from torch.nn import functional

from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import argument, called_name, is_call, is_method

_PRODUCTS = (torch.matmul, torch.mm)
_SWAPS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "t": ((),),
    "transpose": ((0, 1), (1, 0), (-1, -2), (-2, -1)),
    "permute": ((1, 0),),
}
_TURNED = (torch.ops.aten.numpy_T, torch.ops.aten.mT)
"""What Dynamo makes of `W.T` and `W.mT` from torch 2.14 on; before, it reads an attribute."""


def unify_linears(view: GraphView) -> int:
    """Rewrite the linear maps. Returns the number changed."""
    return sum(
        _spell_out(n) or _product(view, n) or _addmm(view, n) for n in view.nodes if n.op == "call_function"
    )


def _spell_out(node: fx.Node) -> bool:
    """linear(x, W) -> linear(x, W, None), without keywords."""
    if not is_call(node, "linear"):
        return False
    arguments = (argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias"))
    if node.args == arguments and not node.kwargs:
        return False
    node.args, node.kwargs = arguments, {}
    return True


def _product(view: GraphView, node: fx.Node) -> bool:
    """X @ W.T -> linear(x, W, None)."""
    if node.target not in _PRODUCTS or len(node.args) != 2 or node.kwargs:
        return False
    x, matrix = node.args
    weight = _transposed_parameter(view, matrix)
    x_tensor = view.tensor(x)
    if weight is None or x_tensor is None or x_tensor.dim() < 2:
        return False
    node.target, node.args = functional.linear, (x, weight, None)
    _erase_unused(view, matrix)
    return True


def _transposed_parameter(view: GraphView, node: Any) -> fx.Node | None:
    """W where `node` is W.T in one of its spellings, and W is a matrix and a parameter."""
    if not isinstance(node, fx.Node) or not node.args or not view.is_parameter(node.args[0]):
        return None
    weight, rest = node.args[0], node.args[1:]
    assert isinstance(weight, fx.Node)
    tensor = view.tensor(weight)
    if tensor is None or tensor.dim() != 2 or node.kwargs:
        return None
    if (node.target is getattr and rest in {("T",), ("mT",)}) or (node.target in _TURNED and not rest):
        return weight
    return weight if rest in _SWAPS.get(called_name(node), ()) else None


def _addmm(view: GraphView, node: fx.Node) -> bool:
    """addmm(b, x, W) -> linear(x, W.t(), b), with the reshapes around it where x had more dimensions.

    The weight of GPT-2's `Conv1D` is [in, out]. `linear` flattens a contiguous 3-dimensional input by itself.
    """
    if node.target is not torch.addmm or len(node.args) != 3 or node.kwargs:
        return False
    bias, x, weight = node.args
    bias_tensor, weight_tensor = view.tensor(bias), view.tensor(weight)
    if not view.is_parameter(bias) or not view.is_parameter(weight) or not isinstance(x, fx.Node):
        return False
    if bias_tensor is None or bias_tensor.dim() != 1 or weight_tensor is None or weight_tensor.dim() != 2:
        return False
    assert isinstance(weight, fx.Node)
    outer, source = _unflattened(view, node, x)
    with view.graph.inserting_before(outer):
        transposed = view.graph.call_method("t", (weight,))
    transposed.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    transposed.meta["example_value"] = weight_tensor.t()
    outer.op, outer.target = "call_function", functional.linear
    outer.args, outer.kwargs = (source, transposed, bias), {}
    if outer is not node:
        view.graph.erase_node(node)
        _erase_unused(view, x)
    return True


def _unflattened(view: GraphView, node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    """(node that has the value in its own shape, x in its own shape): `node` and `x` where they are flat."""
    users = list(node.users)
    if len(users) != 1 or not is_method(users[0], "view", "reshape") or not is_method(x, "view", "reshape"):
        return node, x
    outer, source = users[0], x.args[0]
    if view.tensor(source) is None or not isinstance(source, fx.Node) or view.storage.is_written(source):
        return node, x
    shape = view.shape(source)
    same = view.shape(outer)[:-1] == shape[:-1] and view.shape(x)[-1] == shape[-1]
    fits = same and len(shape) == 3 and len(view.shape(x)) == 2 and view.is_contiguous(source)
    return (outer, source) if fits else (node, x)


def _erase_unused(view: GraphView, node: object) -> None:
    if isinstance(node, fx.Node) and not node.users:
        view.graph.erase_node(node)
