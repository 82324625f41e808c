"""The gate on the vocabulary head: channels of its rotated input; the best tokens exact.

What the channels are worth to each token is read from a coarse copy, int8 and by channel, which stands beside
the weight. Of the weight itself only the rows of the best tokens are read.
"""

import dataclasses
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.utils.weak import WeakTensorKeyDictionary

from srrc.ops.coarse_copy import CoarseCopy, coarse_copy
from srrc.passes.context import Context
from srrc.passes.emit import emit, emit_tensor, value_of
from srrc.passes.gating import coarse_vocab
from srrc.passes.gating.source import GateSource, emit_gates
from srrc.passes.linear_arguments import bias_of, replace, weight_of
from srrc.pathways.base import Linear, Pathway
from srrc.pathways.vocab import Head
from srrc.reasons import Reason, Refusal
from srrc.runtime.gates import Gate

EXACT_SHARE = 24
"""One token in so many gets exact logits where the profile does not say."""

MULTIPLE = 16
"""What a copy's tokens are rounded up to on a card, which reads 16 bytes at once where a row is a multiple of them."""


@dataclass(frozen=True)
class _Made:
    """A copy made of a weight, and of what; the large part of it lives only as long as a graph holds it."""

    version: int
    memory: int
    inverse: "weakref.ref[Tensor]"
    coarse: "weakref.ref[Tensor]"
    scale: Tensor
    bias: Tensor
    norm: Tensor


_made = WeakTensorKeyDictionary()
"""Weight -> the copy last made of it: a model's prefill and decode graphs share one."""


def gate_ids(pathway: Pathway) -> list[str]:
    """The gate on the channels of the rotated input, and the one that lets a coarse weight be read instead.

    A head has one of them at most.
    """
    return [f"vocab:{pathway.place}", f"vocab:{pathway.place}/coarse"]


def insert(
    gm: fx.GraphModule, pathway: Pathway, source: GateSource, context: Context, fake_mode: FakeTensorMode
) -> list[Gate]:
    """Replace the head by one `srr::vocab_head`; or by a `srr::coarse_head`, where the backend has one.

    Without a basis, channels are the input's own.
    """
    site = pathway.site
    assert isinstance(site, Head)
    linear = site.linear
    gate_id, coarse_id = gate_ids(pathway)
    if source.coarse and source.covers(coarse_id):
        return [coarse_vocab.insert(gm, coarse_id, pathway, source, context, fake_mode)]
    if not source.covers(gate_id):
        context.refusals.append(Refusal(pathway.place, "vocab", Reason.NOT_GATED_YET))
        return []
    rotation, inverse, mean, exact = _basis(gate_id, linear, source)
    copy = _copy(linear, source, inverse, mean)
    norm = source.vectors.get(f"{gate_id}/norm", copy.norm)
    with gm.graph.inserting_before(linear.node):
        weight, bias = weight_of(gm.graph, linear, fake_mode), bias_of(gm.graph, linear, fake_mode)
        held = emit_gates(gm, gate_id, linear.x, 1, context, fake_mode, counters=4)
        # In bfloat16 it is half to read, every time; on SmolLM2 the drift is the same to four digits.
        tensors = {
            "rotation": rotation.to(torch.bfloat16),
            "mean": mean,
            "coarse": copy.coarse,
            "scale": copy.scale,
        }
        tensors |= {"bias": copy.bias, "norm": norm}
        nodes = [emit_tensor(gm, f"{held.name}_{name}", t, fake_mode) for name, t in tensors.items()]
        args = (linear.x, weight, bias, *nodes, held.record, held.counter, exact)
        result = emit(gm.graph, torch.ops.srr.vocab_head.default, args, fake_mode)
    element = value_of(weight).element_size()
    replace(gm.graph, pathway.nodes, linear.node, result)
    tokens, width = linear.out_features, linear.in_features
    tables = sum(t.numel() * t.element_size() for name, t in tensors.items() if name != "coarse")
    gate = held.gate(gate_id, 0, 2.0 * tokens, tokens * copy.coarse.element_size())
    return [
        dataclasses.replace(
            gate,
            overhead=0.0,  # an open gate decides nothing
            fixed_flops=width * (2.0 * (width + exact) + 1.0),
            fixed_bytes=float(tables + exact * width * element),
            spared_bytes=float(tokens * width * (element - copy.coarse.element_size())),
        )
    ]


def _basis(gate_id: str, linear: Linear, source: GateSource) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rotation and its inverse [H, H], mean [H], and how many tokens get exact logits."""
    rotation, inverse, mean, exact = (
        source.vectors.get(f"{gate_id}/{name}") for name in ("rotation", "inverse", "mean", "exact")
    )
    count = max(1, linear.out_features // EXACT_SHARE) if exact is None else int(exact)
    if rotation is None or inverse is None or mean is None:
        width = linear.in_features
        device = source.weights[linear.weight.name].device
        eye = torch.eye(width, dtype=torch.float32, device=device)
        return eye, eye, torch.zeros_like(eye[0]), count
    return rotation, inverse, mean, count


def _copy(linear: Linear, source: GateSource, inverse: Tensor, mean: Tensor) -> CoarseCopy:
    """The head's coarse copy: the one that another graph holds, or a new one."""
    parameter = source.weights[linear.weight.name]
    known: _Made | None = _made.get(parameter)  # type: ignore[no-untyped-call]
    if known is not None and linear.rows is None and known.inverse() is inverse:
        coarse = known.coarse()
        current = known.version == _version(parameter) and known.memory == parameter.data_ptr()
        if current and coarse is not None:
            return CoarseCopy(coarse, known.scale, known.bias, known.norm)
    weight = source.matrix(linear)
    bias = None if linear.bias is None else source.weights[linear.bias.name].detach()
    if linear.rows is not None:
        bias = None if bias is None else bias[slice(*linear.rows)]
    multiple = 1 if weight.device.type == "cpu" else MULTIPLE
    copy = coarse_copy(weight, bias, inverse, mean, multiple=multiple)
    small = (copy.scale, copy.bias, copy.norm)
    made = (_version(parameter), parameter.data_ptr(), weakref.ref(inverse), weakref.ref(copy.coarse))
    _made[parameter] = _Made(*made, *small)
    return copy


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version
