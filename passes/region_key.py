"""A key that two regions share exactly when they compute the same function of their inputs."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import sympy
import torch
from torch import fx


def region_key(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Iterable[fx.Node]
) -> str:
    """Hash of operators, constants, edges and input layouts, with values named by position (hex, 64 digits)."""
    names = {node: f"%{index}" for index, node in enumerate([*inputs, *nodes])}
    symbols = _SymbolNames()
    lines = [f"{names[node]} = {symbols.describe(node.meta.get('example_value'))}" for node in inputs]
    lines += _aliases(inputs, names)
    for node in nodes:
        target = _attribute(gm, node) if node.op == "get_attr" else _target(node.target)
        args = fx.map_arg(
            (node.args, dict(sorted(node.kwargs.items()))), lambda n: cast("Any", _Name(names[n]))
        )
        lines.append(f"{names[node]} = {node.op} {target} {args!r}")
    lines.append(f"return {[names[node] for node in outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def free_symbols(value: object) -> list[sympy.Symbol]:
    """The symbols in a value's shape and strides, in order of appearance."""
    sizes: list[object] = [value]
    if isinstance(value, torch.Tensor):
        sizes = [*value.shape, *(value.stride() if value.layout == torch.strided else ())]
    elif isinstance(value, (tuple, list)):
        return list(dict.fromkeys(symbol for item in value for symbol in free_symbols(item)))
    expressions = [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]
    return list(dict.fromkeys(s for e in expressions for s in sorted(e.free_symbols, key=str)))


def _aliases(inputs: Sequence[fx.Node], names: dict[fx.Node, str]) -> list[str]:
    """Inputs that share storage make another function where one of them is written to: they are in the key."""
    owners: dict[int, str] = {}
    lines = []
    for node in inputs:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()._cdata
            if storage in owners:
                lines.append(f"{names[node]} aliases {owners[storage]}")
            owners.setdefault(storage, names[node])
    return lines


def _attribute(gm: fx.GraphModule, node: fx.Node) -> str:
    """A graph that this one holds (a branch of control flow): its code, and which tensors it holds itself."""
    value = getattr(gm, str(node.target), None)
    if not isinstance(value, fx.GraphModule):
        return f"{node.target} {id(value)}"
    code = [module.code for module in value.modules() if isinstance(module, fx.GraphModule)]
    held = [(name, id(tensor)) for name, tensor in (*value.named_parameters(), *value.named_buffers())]
    return f"{code} {held}"


def _target(target: object) -> str:
    if isinstance(target, (str, torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"


class _Name:
    """Prints as a value's name inside a printed argument list."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class _SymbolNames:
    """Names symbols by their order of appearance: each layer's cache length is a symbol of its own."""

    def __init__(self) -> None:
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}

    def describe(self, value: object) -> str:
        """A value's kind without its content: dtype, shape, strides, device; or the number itself."""
        if isinstance(value, torch.Tensor):
            shape = [self._size(size) for size in value.shape]
            strided = value.layout == torch.strided
            strides = [self._size(stride) for stride in value.stride()] if strided else value.layout
            return f"{value.dtype} {shape} {strides} {value.device} {value.requires_grad}"
        if isinstance(value, torch.SymInt):
            return self._size(value)
        return f"{type(value).__name__} {value}"

    def _size(self, size: int | torch.SymInt) -> str:
        if isinstance(size, int):
            return str(size)
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            self._names.setdefault(symbol, sympy.Symbol(f"size{len(self._names)}"))
        return str(expression.xreplace(self._names))
