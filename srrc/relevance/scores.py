"""What each gated op's gates score, read off the arguments of a call: one function an op, in the order of its
rows.

The ops say what a score is; this file evaluates it without deciding, so that calibration can look at all of
them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from srrc.ops import activation as activations
from srrc.ops import block_gate, coarse_head, layer_gate
from srrc.ops.emphasis import emphasised
from srrc.ops.gate import input_score
from srrc.ops.vocab_head import rotate

Arguments = Mapping[str, Any]
"""Argument name -> value, as the op's schema names them."""


@dataclass(frozen=True)
class Scored:
    """`score` float32 [..., units], with the leading shape of the op's x: |input| times `norm`, float32
    [units]; ones where a score has no norm.
    """

    score: Tensor
    norm: Tensor


def _channel_linear(a: Arguments) -> list[Scored]:
    return [_scored(a, a["x"], a["norm"], a.get("emphasis"))]


def _neuron_mlp(a: Arguments) -> list[Scored]:
    act, x = activations.lookup(a["activation"]).forward, a["x"]
    up = F.linear(x, a["up_weight"], a["up_bias"])
    if a["gate_weight"] is None:
        acted = hidden = act(up)
    else:
        acted = act(F.linear(x, a["gate_weight"], a["gate_bias"]))
        hidden = acted * up
    pairs = ((x, a["input_norm"]), (acted, a["neuron_norm"]), (hidden, a["down_norm"]))
    probes = (None, None, None) if a.get("emphasis") is None else a["emphasis"]
    return [_scored(a, value, norm, probe) for (value, norm), probe in zip(pairs, probes, strict=True)]


def _scored(a: Arguments, value: Tensor, norm: Tensor, probe: Tensor | None) -> Scored:
    return Scored(emphasised(input_score(value, norm), a["x"], probe), norm)


def _vocab_head(a: Arguments) -> list[Scored]:
    y = rotate(a["x"], a["rotation"], a["mean"])
    return [Scored(input_score(y, a["norm"]), a["norm"])]


def _layer_gate(a: Arguments) -> list[Scored]:
    return [Scored(layer_gate.score(a["x"], a["probe"]), torch.ones(1, dtype=torch.float32))]


def _block_gate(a: Arguments) -> list[Scored]:
    return [Scored(block_gate.score(a["x"], a["probes"]), torch.ones(len(a["probes"]), dtype=torch.float32))]


def _coarse_head(a: Arguments) -> list[Scored]:
    return [Scored(coarse_head.score(a["x"]), torch.ones(1, dtype=torch.float32))]


_SCORES: Mapping[str, tuple[str, Callable[[Arguments], list[Scored]]]] = {
    "srr::block_gate": ("gate", _block_gate),
    "srr::channel_linear": ("gate", _channel_linear),
    "srr::coarse_head": ("gate", _coarse_head),
    "srr::layer_gate": ("gate", _layer_gate),
    "srr::neuron_mlp": ("gates", _neuron_mlp),
    "srr::vocab_head": ("gate", _vocab_head),
}
"""Qualified op name -> (the argument that holds its gate records, its scores)."""


def records_argument(node: fx.Node) -> str | None:
    """The name of the argument that holds the node's gate records; None for a node that is no gated op."""
    entry = _SCORES.get(op_name(node))
    return None if entry is None else entry[0]


def scores(node: fx.Node, arguments: Arguments) -> list[Scored]:
    """Scores of each of the node's gates. Raises KeyError for a node that is no gated op."""
    with torch.no_grad():
        return _SCORES[op_name(node)][1](arguments)


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by the names of its op's schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]  # noqa: SLF001
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def op_name(node: fx.Node) -> str:
    """The qualified name of the node's op, "srr::channel_linear"; "" for a node that calls none."""
    target = node.target
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""  # noqa: SLF001
