"""The driver: straight-line code that calls the compiled regions of a graph one after another.

The code is generated, so that a call costs one Python call a region and nothing else, and every value is dropped
after its last use. Tensors that the graph holds as attributes (thresholds, counters) are bound into the code.
"""

import itertools
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_serials = itertools.count()


@dataclass(frozen=True)
class Condition:
    """When a step runs: if any row of `keep` (bool) is kept. Otherwise the value of `bypass` is its output."""

    keep: fx.Node
    bypass: fx.Node


@dataclass(frozen=True)
class Step:
    """One call: a compiled region, the graph's nodes that it reads, and those that it defines.

    condition: None for a step that always runs; with one, a step has one output
    """

    run: Callable[..., Any]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    condition: Condition | None = None

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """All that must be known when the step is reached."""
        extra = () if self.condition is None else (self.condition.keep, self.condition.bypass)
        return (*extra, *self.inputs)


@dataclass(frozen=True)
class Driver:
    """`run(*args)` computes the graph; `source` is the code that does it, for people and dumps."""

    run: Callable[..., Any]
    source: str


def build_driver(gm: fx.GraphModule, steps: Sequence[Step]) -> Driver:
    """Generate the function that computes `gm` by running `steps` in order."""
    names: dict[fx.Node, str] = {}
    namespace: dict[str, Any] = {"runs": runs}
    arguments: list[str] = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"a{len(arguments)}"
            arguments.append(names[node])
        elif node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), torch.Tensor):
            names[node] = f"c{len(namespace)}"
            namespace[names[node]] = getattr(gm, str(node.target))
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    spent = _last_uses(steps, keep=set(output.all_input_nodes))
    lines = [f"def run({', '.join(arguments)}):"]
    for index, step in enumerate(steps):
        for node in step.outputs:
            names[node] = f"v{len(names)}"
        namespace[f"r{index}"] = step.run
        results = "".join(f"{names[node]}, " for node in step.outputs) or "_ = "
        call = f"r{index}({', '.join(names[node] for node in step.inputs)})"
        line = f"{results[:-1]} = {call}" if step.outputs else call
        if step.condition is None:
            lines.append(f"    {line}")
        else:
            keep, bypass = names[step.condition.keep], names[step.condition.bypass]
            lines += [f"    if runs({keep}):", f"        {line}"]
            lines += ["    else:", f"        {names[step.outputs[0]]} = {bypass}"]
        if spent[index]:
            lines.append(f"    del {', '.join(names[node] for node in spent[index])}")
    lines.append(f"    return {_returned(output.args[0], names)}")
    source = "\n".join(lines) + "\n"
    filename = f"<srrc driver {next(_serials)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), namespace)  # noqa: S102  (the code is ours, written above)
    return Driver(namespace["run"], source)


def runs(keep: torch.Tensor) -> bool:
    """Whether a step with this condition, bool [..., 1], runs: for any of its rows (few rows are kept together)."""
    return bool(keep.item() if keep.numel() == 1 else keep.any())


def _last_uses(steps: Sequence[Step], keep: set[fx.Node]) -> list[list[fx.Node]]:
    """For each step, the values that steps defined and that nothing reads after it."""
    defined = {node for step in steps for node in step.outputs}
    seen = set(keep)
    spent: list[list[fx.Node]] = []
    for step in reversed(steps):
        used = dict.fromkeys([*step.reads, *step.outputs])
        spent.append([node for node in used if node in defined and node not in seen])
        seen.update(used)
    return spent[::-1]


def _returned(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, (tuple, list)):
        return f"({''.join(_returned(item, names) + ', ' for item in value)})"
    return names[value] if isinstance(value, fx.Node) else repr(value)
