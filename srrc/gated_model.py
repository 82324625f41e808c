"""A model captured as one graph with every gate in it, for calibration to interpret."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from srrc.compiler import Capture, capture
from srrc.errors import ModelError
from srrc.options import LEVELS
from srrc.passes.base import Pass
from srrc.passes.capture import fresh
from srrc.passes.context import Context
from srrc.passes.copy_graph import copy_graph
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating.residual import skipped_nodes
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import AROUND, GATED, InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pipeline import run_passes
from srrc.pathways.base import Pathway
from srrc.relevance.drift import Measure
from srrc.relevance.replay import GateLike

Covers = Callable[[str], bool]


class GatedGraph:
    """A captured graph, and the gates that calibration puts into it.

    base:     the normalised graph without gates; `pathways` in it
    gm:       the graph with gates, once `insert` was called; `gates` are those that are covered, `around` tells of
              those inside of a layer gate's branch which it is, by gate id
    weights:  placeholder name -> parameter; `names`: placeholder name -> the parameter's name in the model
    how:      whether the output whose drift counts is logits or other values
    """

    def __init__(self) -> None:
        self.how: Measure = "logits"
        self.pathways: Sequence[Pathway] = ()
        self.weights: Mapping[str, Tensor] = {}
        self.names: Mapping[str, str] = {}
        self.gates: Sequence[GateLike] = ()
        self.around: Mapping[str, str] = {}
        self._captured: Capture | None = None
        self._index = 0

    def capture(self, captured: Capture) -> None:
        """Take a graph, and find its pathways."""
        self._captured = captured
        self.weights, self.names = captured.living_weights(), captured.fqns
        context = Context(fqns=dict(captured.fqns))
        self.base = self._pass((Normalise(), FindPathways()), context)
        self.pathways = context.pathways

    def insert(self, covers: Covers, vectors: Mapping[str, Tensor]) -> None:
        """Put a gate wherever one can stand and `covers(gate id)`, with `vectors` by "gate id/name"."""
        assert self._captured is not None
        source = GateSource(covers, self.weights, vectors, many_rows=True, coarse=True, blocks=True)
        context = Context(fqns=dict(self._captured.fqns), gate_store=self._captured.gate_store)
        gating = InsertGates(source, LEVELS, self._captured.fake_mode)
        gm = self._pass((Normalise(), FindPathways()), context)
        around = _around(source, context)
        self.gm = run_passes((gating,), gm, context)
        self.gates = [gate for gate in context.gates if covers(gate.id)]
        held = {gate.id for gate in self.gates}
        self.around = {inner: outer for inner, outer in around.items() if outer in held}

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Positions among the graph's arguments of token ids and of their embeddings; None where it reads no tokens."""
        assert self._captured is not None
        return self._captured.tokens

    def arguments(self, inputs: Any) -> Sequence[Any]:
        """The graph's arguments for one call of the model."""
        raise NotImplementedError

    def output(self, outputs: Any) -> Tensor:
        """The tensor [..., N] whose drift counts, out of what the graph gives."""
        found: Tensor = outputs[self._index]
        return found

    def _pass(self, passes: Sequence[Pass], context: Context) -> fx.GraphModule:
        assert self._captured is not None
        gm = self._captured.gm
        return run_passes(passes, fx.GraphModule(gm, copy_graph(gm.graph)), context)


class GatedModel(GatedGraph):
    """A model captured as one graph by Dynamo, and how to get the graph's arguments from the model's inputs.

    Raises ModelError where Dynamo breaks the model into several graphs, or where the output is no output of
    the graph.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self._arguments: Sequence[Any] = ()
        self._outputs: Sequence[Any] = ()
        self._compiled = torch.compile(fresh(model), backend=self._backend, fullgraph=True, dynamic=False)
        wanted, self.how = _wanted(self._call(example))
        self._index = _position(wanted, self._outputs)
        # From here on a call only delivers arguments; what it returns has the right shapes and no memory.
        self._outputs = list(map(_hollow, self._outputs))

    def arguments(self, inputs: Any) -> Sequence[Any]:
        """The graph's arguments for one call of the model.

        Raises ModelError for other shapes than the first call's.
        """
        self._call(inputs)
        return self._arguments

    def _call(self, inputs: Any) -> Any:
        args, kwargs = as_call(inputs)
        try:
            with torch.no_grad():
                return self._compiled(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise error.inner_exception from error
        except torch._dynamo.exc.Unsupported as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"cannot calibrate: Dynamo does not capture the model as one graph ({first})"
            ) from error

    def _backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if self._captured is not None:
            raise ModelError("cannot calibrate: all batches must have the same shapes and the same arguments")
        self.capture(capture(gm, example_inputs))

        def run(*args: Any) -> Any:
            self._arguments = args
            if not self._outputs:
                self._outputs = fx.Interpreter(self.base).run(*args)
            return self._outputs

        return run


def _around(source: GateSource, context: Context) -> dict[str, str]:
    """Gate id -> id of the layer gate in whose branch it stands; asked before the gates replace any node."""
    found: dict[str, str] = {}
    for branch in (pathway for pathway in context.pathways if pathway.kind in AROUND):
        outer, *parts = GATED[branch.kind][1](branch)
        found |= dict.fromkeys(parts, outer)
        inside = set(skipped_nodes(branch, source, context))
        for pathway in context.pathways:
            if pathway.kind in GATED and pathway.kind not in AROUND and inside.issuperset(pathway.nodes):
                found |= dict.fromkeys(GATED[pathway.kind][1](pathway), outer)
    return found


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: from a mapping, a sequence, or one value."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, list | tuple) else ((inputs,), {})


def _wanted(result: Any) -> tuple[Tensor, Measure]:
    """The output that counts: logits where it has any, one tensor, or else the first tensor of all."""
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits, "logits"
    if isinstance(result, Tensor):
        return result, "logits"
    for leaf in _pytree.tree_leaves(dict(result) if isinstance(result, Mapping) else result):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf, "values"
    raise ModelError(f"cannot calibrate: the model's output, a {type(result).__name__}, holds no tensor")


def _position(wanted: Tensor, outputs: Sequence[Any]) -> int:
    for index, output in enumerate(outputs):
        if output is wanted or (
            isinstance(output, Tensor)
            and output.shape == wanted.shape
            and output.data_ptr() == wanted.data_ptr()
        ):
            return index
    raise ModelError(
        "cannot calibrate: the model's output is computed outside the graph that Dynamo captured"
    )


def _hollow(value: Any) -> Any:
    return value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value
