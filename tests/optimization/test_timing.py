"""How files are timed against each other."""

import weakref
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch

from srrc.backends.onnx.build import op
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.errors import ModelError
from srrc.optimization.timing import LOADS, over_loads


def square(path: Path) -> Path:
    """A file that multiplies its input by itself."""
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([None]))
    nodes: list[ir.Node] = []
    out = op(nodes, "Mul", [x, x])
    out.name, out.type, out.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [out], nodes=nodes, opset_imports={"": 23}, name="square")
    return save(ir.Model(graph, ir_version=10), path)


def test_no_more_than_two_files_are_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, order = [0], []

    class Counted(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, *given: Any, **named: Any) -> None:
            super().__init__(path, *given, **named)
            alive.add(self)
            order.append(Path(path).stem)
            most[0] = max(most[0], len(alive))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Counted)
    dense, gated = Session(square(tmp_path / "dense.onnx")), Session(square(tmp_path / "gated.onnx"))
    times = over_loads(dense, gated, {}, [{"x": torch.ones(3)}], rounds=2)
    assert times.keys() == {"dense", "gated", "ratio"}
    assert most == [2]
    assert order == ["dense", "gated", "gated", "dense", "dense", "gated"]
    assert len(order) == 2 * LOADS


def test_a_released_file_is_read_again_when_it_is_run(tmp_path: Path) -> None:
    path = square(tmp_path / "square.onnx")
    session = Session(path)
    session.release()
    assert session.run({"x": torch.tensor([3.0])})["y"].tolist() == [9.0]
    session.release()
    path.unlink()
    with pytest.raises(ModelError, match=r"ONNX Runtime does not load square\.onnx"):
        session.run({"x": torch.tensor([3.0])})
