"""Runs a gated graph so that gradients flow through it, with every gate's decision in the trainer's hands.

Ops of the namespace `srr` decide by a record and hold what they kept constant. Here each gate is asked through a
`Decide` instead, which may see all of a batch (to drop a fraction of it), let gradients reach scores, or draw by lot.
The arithmetic is the references': zero what is dropped, then the dense products. The vocabulary head stays dense: its
gate chooses by logits themselves, and nothing is left for training to do there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from srrc.gated_model import GatedGraph
from srrc.ops import activation
from srrc.relevance import scores
from srrc.relevance.replay import Replay


class Decide(Protocol):
    """What becomes of a gate's value."""

    def __call__(self, gate: str, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        """`value` with what the gate drops set to zero.

        gate:     its id
        value:    [..., units], what the gate's units are
        norm:     float32 [units], of the weights that read it
        features: [..., K], the input of the op that the gate belongs to
        """
        ...


class Routed(fx.Interpreter):
    """The gated graph of a captured model, with `decide` for its gates; None leaves all of them open."""

    def __init__(self, gated: GatedGraph) -> None:
        super().__init__(gated.gm)
        self._gated = gated
        self.decide: Decide | None = None
        self.inputs: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self._watching = False
        self._ids: dict[fx.Node, dict[int, str]] = {}
        replay = Replay(gated.gm, gated.gates)
        for place in replay.places:
            self._ids.setdefault(replay.nodes[place.index], {})[place.row] = place.gate.id

    @property
    def norms(self) -> dict[str, Tensor]:
        """Gate id -> the norm of each of its units, float32 [units], of the gates that are asked."""
        found: dict[str, Tensor] = {}
        for node, ids in self._ids.items():
            named = scores.named_arguments(node)
            for row, name in enumerate(_NORMS.get(scores.op_name(node), ())):
                if row in ids:
                    found[ids[row]] = getattr(self._gated.gm, str(named[name].target))
        return found

    @property
    def gates(self) -> Mapping[str, int]:
        """Gate id -> number of its units, of the same gates."""
        return {gate: norm.numel() for gate, norm in self.norms.items()}

    @property
    def ops(self) -> list[list[str]]:
        """The ids of the gates of each op, those that are asked, in graph order."""
        return [list(ids.values()) for node, ids in self._ids.items() if scores.op_name(node) in _NORMS]

    @property
    def widths(self) -> dict[str, int]:
        """Gate id -> K, the width of what its op reads."""
        reads = {node: scores.named_arguments(node)["x"].meta["example_value"] for node in self._ids}
        return {
            gate: int(reads[node].shape[-1])
            for node, ids in self._ids.items()
            if scores.op_name(node) in _NORMS
            for gate in ids.values()
        }

    def outputs(self, arguments: Sequence[Any], decide: Decide | None) -> Tensor:
        """The output that drift is measured on, [..., N], for arguments of the graph."""
        self.decide = decide
        return self._gated.output(self.run(*arguments))

    def watched(self, arguments: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """With all gates open: the output, and what each gated op read and gave, by the id of its first gate.

        Gradients reach all of these outputs: the first op's input is cut off from what is before it, and asks for one.
        """
        self.inputs, self.given = {}, {}
        self._watching = True
        try:
            return self.outputs(arguments, None), self.inputs, self.given
        finally:
            self._watching = False

    def run_node(self, n: fx.Node) -> Any:
        """A gated op by its own function below; anything else as it is."""
        function = _FUNCTIONS.get(scores.op_name(n))
        if function is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        named = {**dict(zip(scores.named_arguments(n), args, strict=False)), **kwargs}
        if self._watching and n in self._ids and scores.op_name(n) in _NORMS:
            return self._watch(n, named, function)
        return function(named, lambda row, value, norm: self._ask(n, row, value, norm, named["x"]))

    def _watch(self, n: fx.Node, named: dict[str, Any], function: "Function") -> Tensor:
        if not self.given:
            named["x"] = named["x"].detach().requires_grad_()
        first = next(iter(self._ids[n].values()))
        self.inputs[first] = named["x"].detach()
        self.given[first] = function(named, lambda row, value, norm: value)
        return self.given[first]

    def _ask(self, node: fx.Node, row: int, value: Tensor, norm: Tensor, features: Tensor) -> Tensor:
        gate = self._ids.get(node, {}).get(row)
        return value if gate is None or self.decide is None else self.decide(gate, value, norm, features)


Ask = Callable[[int, Tensor, Tensor], Tensor]
"""`ask(row, value, norm)`: what the gate on that row of the node's records leaves of the value."""


def _channel_linear(a: Mapping[str, Any], ask: Ask) -> Tensor:
    x = ask(0, a["x"], a["norm"])
    return torch.cat([F.linear(x, w, b) for w, b in zip(a["weights"], a["biases"], strict=True)], -1)


def _neuron_mlp(a: Mapping[str, Any], ask: Ask) -> Tensor:
    act = activation.lookup(a["activation"]).forward
    x = ask(0, a["x"], a["input_norm"])
    apart = a.get("whole_up", False) and a["gate_weight"] is not None
    up = F.linear(a["x"] if apart else x, a["up_weight"], a["up_bias"])
    if a["gate_weight"] is None:
        hidden = act(up)
    else:
        hidden = ask(1, act(F.linear(x, a["gate_weight"], a["gate_bias"])), a["neuron_norm"]) * up
    return F.linear(ask(2, hidden, a["down_norm"]), a["down_weight"], a["down_bias"])


def _vocab_head(a: Mapping[str, Any], ask: Ask) -> Tensor:
    return F.linear(a["x"], a["weight"], a["bias"])


Function = Callable[[Mapping[str, Any], Ask], Tensor]

_FUNCTIONS: Mapping[str, Function] = {
    "srr::channel_linear": _channel_linear,
    "srr::neuron_mlp": _neuron_mlp,
    "srr::vocab_head": _vocab_head,
}

_NORMS: Mapping[str, Sequence[str]] = {
    "srr::channel_linear": ("norm",),
    "srr::neuron_mlp": ("input_norm", "neuron_norm", "down_norm"),
}
"""Op -> the argument that holds the norm of each of its gates."""


def constant(arguments: Sequence[Any]) -> list[Any]:
    """The same values without gradients: the graph's own weights are not what is trained."""
    return [each.detach() if isinstance(each, Tensor) else each for each in arguments]
