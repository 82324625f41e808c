"""One ONNX node as a function of tensors, computed by ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from srrc.backends.onnx.session import import_onnxruntime
from srrc.errors import ModelError


class OnnxCall:
    """`call(*inputs)` -> the node's output, or a tuple of them. Sessions are made when they are first needed."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._sessions: dict[tuple[tuple[str, int] | None, ...], object] = {}
        self.__name__ = node.op_type
        self.__module__ = __name__
        self.__qualname__ = node.op_type

    def __call__(self, *inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """The output; a tuple of several."""
        found = self.run(inputs)
        return found[0] if len(found) == 1 else tuple(found)

    def run(self, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """All outputs."""
        key = tuple(None if each is None else (str(each.dtype), each.dim()) for each in inputs)
        if key not in self._sessions:
            self._sessions[key] = self._session(inputs)
        given = {
            f"i{at}": each.detach().contiguous().numpy() for at, each in enumerate(inputs) if each is not None
        }
        found = self._sessions[key].run(None, given)  # type: ignore[attr-defined]
        return [torch.from_numpy(np.array(each)) for each in found]

    def _session(self, inputs: Sequence[Tensor | None]) -> object:
        runtime = import_onnxruntime()
        values = [None if each is None else _value(f"i{at}", each) for at, each in enumerate(inputs)]
        node = ir.Node(
            self._node.domain,
            self._node.op_type,
            values,
            list(self._node.attributes.values()),
            num_outputs=len(self._node.outputs),
        )
        for at, (out, old) in enumerate(zip(node.outputs, self._node.outputs, strict=True)):
            out.name, out.type = f"o{at}", old.type
        owner = self._node.graph
        opsets = dict(owner.opset_imports) if owner is not None else {"": 23}
        graph = ir.Graph([each for each in values if each is not None], node.outputs, nodes=[node], name="one",
                         opset_imports=opsets)  # fmt: skip
        proto = ir.to_proto(ir.Model(graph, ir_version=10))
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        try:
            return runtime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base but Exception
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"cannot read the model: {self._node.op_type} {self._node.name}: {first}"
            ) from error


def _value(name: str, tensor: Tensor) -> ir.Value:
    kind = ir.DataType.from_numpy(tensor.numpy().dtype)
    return ir.val(name, kind, ir.Shape([f"{name}_{at}" for at in range(tensor.dim())]))
