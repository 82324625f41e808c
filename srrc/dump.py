"""Writes what a compilation did into a folder: each stage of the graph, the driver, the plan, a reproducer."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from srrc.errors import CacheError
from srrc.runtime.compiled_graph import CompiledGraph

Observer = Callable[[str, fx.GraphModule], None]


def stage_writer(folder: Path | None, graph: CompiledGraph) -> Observer | None:
    """An observer for `run_passes` that writes each stage as a numbered file of code; None without a folder."""
    if folder is None:
        return None
    own = _own_folder(folder, graph)
    count = 0

    def write(name: str, gm: fx.GraphModule) -> None:
        nonlocal count
        code = gm.print_readable(print_output=False, include_stride=True, include_device=True)
        _write(own / f"{count:02}_{name}.py", code)
        count += 1

    return write


def write_result(folder: Path | None, graph: CompiledGraph) -> None:
    """Write the driver's code and the plan of a graph that compiled."""
    if folder is None:
        return
    own = _own_folder(folder, graph)
    _write(own / "driver.py", graph.source)
    _write(
        own / "refusals.txt",
        "".join(f"{r.kind} {r.place}: {r.reason.value} {r.detail}\n" for r in graph.refusals),
    )
    if graph.plan is not None:
        _write(own / "plan.json", json.dumps(dataclasses.asdict(graph.plan), indent=1, default=dict))


def write_reproducer(
    folder: Path | None,
    graph: CompiledGraph,
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    error: BaseException,
) -> None:
    """Write a program that fails as this graph did: its code, and inputs of the same shapes and strides."""
    if folder is None:
        return
    inputs = ",\n    ".join(_input(example) for example in example_inputs)
    body = "\n".join(f"    {line}" for line in gm.code.strip().splitlines())
    program = f'''"""Reproduces: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}"""

import torch
from torch import device, inf, nan  # noqa: F401

class Graph(torch.nn.Module):
{body}

inputs = [
    {inputs}
]
with torch.no_grad():
    torch.compile(Graph().eval(), backend="srr", options={{"strict": True}})(*inputs)
'''
    _write(_own_folder(folder, graph) / "reproducer.py", program)


def _input(example: Any) -> str:
    if not isinstance(example, torch.Tensor):
        return repr(int(example)) if isinstance(example, (int, torch.SymInt)) else repr(example)
    shape, stride = [int(size) for size in example.shape], [int(size) for size in example.stride()]
    fill = ".normal_()" if example.is_floating_point() else ".zero_()"
    return f"torch.empty_strided({shape}, {stride}, dtype={example.dtype}){fill}"


def _own_folder(folder: Path, graph: CompiledGraph) -> Path:
    own = folder / f"graph_{graph.serial:03}"
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"dump_dir {folder} cannot be written ({error.strerror}); give another folder"
        ) from error
    return own


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CacheError(
            f"dump_dir {path.parent} cannot be written ({error.strerror}); give another folder"
        ) from error
