"""What the nodes of a graph write to: Dynamo's graph is not functional, and a cache update has no users.

Everything here errs on the side of caution: an operator that is not known to make fresh storage may alias all
of its inputs.
"""

import functools
import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch.utils import _pytree as pytree


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IN_PLACE = _words("iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift")
_IN_PLACE_OPERATORS = frozenset(getattr(operator, name) for name in _IN_PLACE)
_IN_PLACE_METHODS = frozenset(f"__{name}__" for name in (*_IN_PLACE, "setitem"))

_FRESH_FUNCTIONS = _words("""
    abs adaptive_avg_pool2d add addmm all and_ any arange argmax argmin avg_pool2d baddbmm batch_norm bmm
    cat clamp conv1d conv2d conv3d cos cumsum div embedding empty empty_like eq erf exp floordiv full
    full_like gather ge gelu group_norm gt histc invert isin layer_norm le linear log logical_and
    logical_not logical_or lt matmul max maximum mean min minimum mm mod mul ne neg not_ ones ones_like
    or_ outer pow relu repeat_interleave rms_norm rsqrt rsub scaled_dot_product_attention sigmoid silu sin
    softmax softplus sort sqrt stack sub sum tanh tensor topk tril triu truediv where xor zeros zeros_like
""")
_FRESH_METHODS = _FRESH_FUNCTIONS | _words("""
    argsort clone cumprod index_select masked_fill new_empty new_full new_ones new_tensor new_zeros norm
    repeat roll scatter square var
""")

_INTERPRETER_STATE = (
    "torch._functorch",
    "torch.amp",
    "torch.autograd.grad_mode",
    "torch.autograd.graph",
    "torch.random",
)
_INTERPRETER_CALLS = frozenset(
    {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode"}
)


def written_arguments(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments whose storage `node` may write to."""
    if node.op == "call_method":
        name = str(node.target)
        writes = name.endswith("_") and not name.endswith("__")
        if (writes or name in _IN_PLACE_METHODS) and isinstance(node.args[0], fx.Node):
            yield node.args[0]
    elif node.op == "call_function":
        yield from _written_by_function(node)
    elif node.op == "call_module":
        yield from node.all_input_nodes


def _written_by_function(node: fx.Node) -> Iterator[fx.Node]:
    target = node.target
    name = getattr(target, "__name__", "")
    first = node.args[0] if node.args else None
    if isinstance(target, torch._ops.HigherOrderOperator):
        yield from node.all_input_nodes
    elif isinstance(target, torch._ops.OpOverload):
        yield from _written_by_schema(node, target)
    elif isinstance(target, torch._ops.OpOverloadPacket):
        if any(schema.is_mutable for schema in _schemas(target)):
            yield from node.all_input_nodes
    elif (
        (
            target in _IN_PLACE_OPERATORS
            or target is operator.setitem
            or (name.endswith("_") and name not in _FRESH_FUNCTIONS and not name.endswith("__"))
        )
        or node.kwargs.get("inplace") is True
        or (name in {"relu", "silu"} and node.args[1:2] == (True,))
    ):
        if isinstance(first, fx.Node):
            yield first
    elif name == "batch_norm" and _trains(node):
        yield from (value for value in node.args[1:3] if isinstance(value, fx.Node))
    elif name == "embedding" and (node.kwargs.get("max_norm") or (len(node.args) > 3 and node.args[3])):
        yield from (value for value in node.args[1:2] if isinstance(value, fx.Node))
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        yield out


def _trains(node: fx.Node) -> bool:
    training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
    return training is not False


def _written_by_schema(node: fx.Node, target: torch._ops.OpOverload) -> Iterator[fx.Node]:
    """What the overload's schema says it writes to: `Tensor(a!)`."""
    for position, declared in enumerate(target._schema.arguments):  # noqa: SLF001
        if declared.alias_info is not None and declared.alias_info.is_write:
            given = node.kwargs.get(declared.name)
            given = node.args[position] if position < len(node.args) else given
            yield from (each for each in pytree.tree_leaves(given) if isinstance(each, fx.Node))


def _schemas(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> list[torch.FunctionSchema]:
    names = [] if isinstance(target, torch._ops.OpOverload) else target.overloads()  # type: ignore[no-untyped-call]
    overloads = [getattr(target, name) for name in names] or [target]
    return [overload._schema for overload in overloads]  # noqa: SLF001


def makes_fresh_storage(node: fx.Node) -> bool:
    """Whether the value is known to share no storage with any input of `node`."""
    if node.op == "call_method":
        return str(node.target) in _FRESH_METHODS
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        given = target._schema.returns  # noqa: SLF001
        return bool(given) and not any(value.alias_info for value in given)
    if node.op != "call_function" or any(True for _ in written_arguments(node)):
        return False
    if isinstance(target, torch._ops.OpOverloadPacket):
        return not any(value.alias_info for schema in _schemas(target) for value in schema.returns)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return False
    return getattr(target, "__name__", "") in _FRESH_FUNCTIONS


def aliased_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments that the value of `node` may share storage with."""
    if node.op in {"placeholder", "output"} or makes_fresh_storage(node):
        return []
    if node.op == "call_method" or node.target in {operator.getitem, operator.setitem, getattr}:
        return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
    if getattr(node.target, "__name__", "") == "gated_region":
        return [each for each in node.args[2:3] if isinstance(each, fx.Node)]  # its bypass, or what is new
    return list(written_arguments(node)) or list(node.all_input_nodes)


def changes_interpreter(node: fx.Node) -> bool:
    """Whether `node` changes the state of the interpreter (vmap level, gradient mode): order matters."""
    if node.op != "call_function" or isinstance(node.meta.get("example_value"), torch.Tensor):
        return False
    module = getattr(node.target, "__module__", "") or ""
    return module.startswith(_INTERPRETER_STATE) or getattr(node.target, "__name__", "") in _INTERPRETER_CALLS


class Storage:
    """Which values may share storage, and who writes to it; computed once for a graph."""

    def __init__(self, nodes: tuple[fx.Node, ...]) -> None:
        self._parent: dict[fx.Node, fx.Node] = {node: node for node in nodes}
        writes: list[tuple[fx.Node, fx.Node]] = []
        for node in nodes:
            writes.extend((node, target) for target in written_arguments(node))
            for source in aliased_arguments(node):
                self._join(node, source)
        self.writers: dict[fx.Node, list[fx.Node]] = {}
        for node, target in writes:
            self.writers.setdefault(self.root(target), []).append(node)

    def root(self, node: fx.Node) -> fx.Node:
        """The representative of all values that may share storage with `node`."""
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _join(self, left: fx.Node, right: fx.Node) -> None:
        self._parent[self.root(left)] = self.root(right)

    def is_written(self, node: fx.Node) -> bool:
        """Whether anything in the graph may write to the storage of `node`."""
        return self.root(node) in self.writers

    def writes_outside(self, node: fx.Node) -> bool:
        """Whether `node` may write to what outlives the graph: an input, or storage that is handed out."""
        return any(self.root(target) in self._lasting for target in written_arguments(node))

    @functools.cached_property
    def _lasting(self) -> set[fx.Node]:
        kept = [n for n in self._parent if n.op in {"placeholder", "get_attr"}]
        kept += [source for n in self._parent if n.op == "output" for source in n.all_input_nodes]
        return {self.root(node) for node in kept}
