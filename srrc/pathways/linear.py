"""Reads a linear map off a node, whichever way the model wrote it."""

import operator
from collections.abc import Iterator

import torch
from torch import fx

from srrc.pathways.base import Linear
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import argument, is_call, is_method
from srrc.reasons import Reason, Refusal


def read_linear(view: GraphView, node: object) -> Linear | Refusal | None:
    """The linear map that `node` computes; a refusal where its weight is no parameter; None if it is none.

    Read are `linear(x, W)` and `linear(x, W.t())` (Conv1D), which is what `normalise` leaves, and
    `addmm(b, x, W)`.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if is_call(node, "linear"):
        x, matrix, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
        transposed = is_method(matrix, "t")
        weight = matrix.args[0] if transposed else matrix
    elif node.target is torch.addmm and not node.kwargs:
        bias, x, weight = node.args
        transposed = True
    else:
        return None
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node):
        return None
    return _checked(view, node, x, weight, bias, transposed=transposed)


def _checked(
    view: GraphView, node: fx.Node, x: fx.Node, weight: fx.Node, bias: object, *, transposed: bool
) -> Linear | Refusal:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and not view.is_parameter(value):
            return Refusal(node.name, "channel", Reason.NOT_A_PARAMETER, f"{name} {value}")
    tensor = view.tensor(weight)
    if tensor is None or tensor.dim() != 2:
        return Refusal(view.fqn(weight), "channel", Reason.UNSUPPORTED_SHAPE, "the weight is no matrix")
    values = (view.tensor(x), view.tensor(node))
    if any(value is not None and value.dtype != tensor.dtype for value in values):
        # Autocast casts what the graph does not show; nothing that replaces the node would.
        return Refusal(view.fqn(weight), "channel", Reason.UNSUPPORTED_DTYPE, "it is cast on the way")
    out_features, in_features = tensor.shape[::-1] if transposed else tensor.shape
    bias_node = bias if isinstance(bias, fx.Node) else None
    return Linear(
        node, x, weight, bias_node, view.fqn(weight), int(in_features), int(out_features), transposed
    )


def read_slice(view: GraphView, node: object) -> tuple[Linear, tuple[fx.Node, ...]] | None:
    """A linear, or one part of a fused linear's outputs, and the nodes that cut the part out.

    Read are `chunk(n, dim=-1)[i]`, `split(size or sizes, dim=-1)[i]` and `y[..., a:b]`.
    """
    whole = read_linear(view, node)
    if isinstance(whole, Linear):
        return whole, ()
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return None
    source, index = node.args
    if isinstance(source, fx.Node) and isinstance(index, int):
        fused = source.args[0] if source.args else None
        cutters: tuple[fx.Node, ...] = (source, node)
    else:
        fused, cutters = source, (node,)
    whole, part = read_linear(view, fused), view.tensor(node)
    if not isinstance(whole, Linear) or part is None or not isinstance(part.shape[-1], int):
        return None
    start = next((s for cut, s in _cuts(whole, cutters) if cut is node), None)
    if start is None:
        return None
    rows = (start, start + part.shape[-1])
    cut = Linear(
        whole.node,
        whole.x,
        whole.weight,
        whole.bias,
        whole.fqn,
        whole.in_features,
        part.shape[-1],
        whole.transposed,
        rows,
    )
    return cut, cutters


def _cuts(whole: Linear, cutters: tuple[fx.Node, ...]) -> Iterator[tuple[fx.Node, int]]:
    """(the last of `cutters`, its first output) where they cut along the last dimension."""
    node, size = cutters[-1], whole.out_features
    if len(cutters) == 1:
        index = node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        plain = [slice(None)] * (len(index) - 1)
        leads = (index[0] is Ellipsis and len(index) == 2) or list(index[:-1]) == plain
        last = index[-1]
        if leads and isinstance(last, slice) and last.step in {None, 1} and isinstance(last.start or 0, int):
            yield node, range(size)[last].start if last.start is not None else 0
        return
    cutter, position = cutters[0], node.args[1]
    name = cutter.target if cutter.op == "call_method" else getattr(cutter.target, "__name__", "")
    tensor_dim = argument(cutter, 2, "dim", 0)
    rank = len(cutter.args[0].meta["example_value"].shape)  # type: ignore[union-attr]
    if name not in {"chunk", "split"} or tensor_dim not in {-1, rank - 1} or not isinstance(position, int):
        return
    sizes = argument(cutter, 1, "chunks" if name == "chunk" else "split_size_or_sections")
    if name == "chunk" and isinstance(sizes, int):
        sizes = -(-size // sizes)
    if isinstance(sizes, int):
        yield node, position * sizes
    elif isinstance(sizes, list | tuple):
        yield node, sum(sizes[:position])
