"""What turning one gate into a node of the domain `srrc` needs to know of the graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.passes.emit import emit, emit_tensor
from srrc.passes.linear_arguments import replace
from srrc.pathways.base import Pathway


@dataclass(frozen=True, eq=False)
class Lowering:
    """A graph that is being lowered.

    weights: placeholder name -> the parameter it holds
    pathways: found in the graph that this one is a copy of
    """

    gm: fx.GraphModule
    fake_mode: FakeTensorMode
    weights: Mapping[str, Tensor]
    pathways: Sequence[Pathway] = ()

    def tensor(self, node: object) -> Tensor:
        """The values of a weight, or of a view of one."""
        assert isinstance(node, fx.Node)
        if node.op == "placeholder":
            return self.weights[node.name].detach()
        assert node.target in {torch.ops.aten.t.default, torch.ops.aten.slice.Tensor}
        view: Callable[..., Tensor] = node.target
        return view(*(self.tensor(each) if isinstance(each, fx.Node) else each for each in node.args))

    def node(self, name: str) -> fx.Node:
        """The node of this name."""
        (found,) = (node for node in self.gm.graph.nodes if node.name == name)
        assert isinstance(found, fx.Node)
        return found

    def hold(self, tensor: Tensor) -> fx.Node:
        """Hold a new tensor in the graph, and read it at the insertion point."""
        name = f"srr_held_{sum(name.startswith('srr_held_') for name, _ in self.gm.named_buffers())}"
        return emit_tensor(self.gm, name, tensor, self.fake_mode)

    def replace(self, node: fx.Node, target: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        """Put a call of `target` in the place of `node`, at the insertion point."""
        result = emit(self.gm.graph, target, args, self.fake_mode)
        replace(self.gm.graph, (node,), node, result)
