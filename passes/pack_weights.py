"""Lays the weights of gated ops out by input channel, in place, so that a skipped channel is memory not read.

The parameter keeps its shape [N, K] and its values; only its strides become (1, N), by giving it a new storage and
letting the old one go. Memory stays what it was; `load_state_dict`, optimisers and in-place edits write to the very
storage that the kernels read, so nothing can go stale; eager code and `state_dict` see the same tensor.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from srrc.passes.context import Context
from srrc.passes.emit import value_of
from srrc.passes.gating.neuron import skips_up_rows
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import GATED
from srrc.pathways.base import Linear, Pathway
from srrc.pathways.channel import ChannelGroup
from srrc.pathways.neuron import Mlp
from srrc.pathways.patterns import is_call
from srrc.pathways.vocab import Head
from srrc.reasons import Reason, Refusal
from srrc.runtime.release import Span, release

log = logging.getLogger("srrc.plan")

_AT_A_TIME = 32 << 20
"""Bytes of old layouts that may wait for their release: what packing adds to the peak of memory."""

GATED_OPS = ("srr.channel_linear", "srr.neuron_mlp")


@dataclass(frozen=True)
class PackWeights:
    """Repacks the weights of all linears that have a gate in any graph of the model.

    In a prefill graph the same linears have no gate; but it must see the layout that decoding wants from the start,
    or packing later would make Dynamo compile it again.
    """

    source: GateSource
    fake_mode: FakeTensorMode
    name: str = "pack_weights"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Lay out the weights; the graph stays, its values get the new strides."""
        left: list[Span] = []
        full: list[str] = []
        for node in [linear.weight for linear in gated_linears(context.pathways, self.source)]:
            weight = self.source.weights[node.name]
            if weight.dim() != 2 or not _only_linears(node):
                continue
            if not weight.is_contiguous():
                continue  # by input channel already, or a layout of the user's own
            if not owns_storage(weight):
                context.refusals.append(Refusal(context.fqns[node.name], "channel", Reason.SHARED_STORAGE))
                continue
            recorded = _recorded(node)
            if recorded is None:
                continue
            before = weight.data_ptr(), weight.data_ptr() + weight.nbytes
            try:
                pack_input_major(weight)
            except torch.OutOfMemoryError:
                full.append(context.fqns[node.name])
                continue
            recorded["stride"] = weight.stride()
            with self.fake_mode:
                node.meta["example_value"] = value_of(node).t().contiguous().t()
            if weight.device.type == "cpu":
                left.append(before)
            if sum(end - start for start, end in left) > _AT_A_TIME:
                release(left)
                left.clear()
        if left:
            release(left)
        if full:
            log.warning("%d weights stay by rows, all of which are read: %s", len(full), Reason.NO_MEMORY)
            context.refusals += [Refusal(name, "channel", Reason.NO_MEMORY) for name in full]
        return gm


def pack_input_major(weight: torch.Tensor) -> None:
    """Give `weight` [N, K] the strides (1, N), in place. The old storage is freed with its last user."""
    with torch.no_grad():
        weight.data = weight.detach().t().contiguous().t()


def owns_storage(weight: torch.Tensor) -> bool:
    """True where `weight` is all of its storage and no other process maps it: then its layout is ours to choose."""
    storage = weight.untyped_storage()
    shared = weight.device.type == "cpu" and storage.is_shared()  # memory of a card always says that it is
    return storage.nbytes() == weight.numel() * weight.element_size() and not shared


def gated_linears(pathways: Sequence[Pathway], source: GateSource) -> list[Linear]:
    """The linears whose input channels a gate skips, in this graph or in another of the same model."""
    found: list[Linear] = []
    by_rows: set[fx.Node] = set()
    for pathway in (p for p in pathways if p.kind in GATED and _covered(p, source)):
        site = pathway.site
        if isinstance(site, ChannelGroup):
            found += site.linears
        elif isinstance(site, Mlp):
            found += [linear for linear in (site.gate, site.up, site.down) if linear is not None]
            if skips_up_rows(pathway, source):
                by_rows.add(site.up.weight)
        elif isinstance(site, Head):
            by_rows.add(site.linear.weight)  # single tokens are read from it
    return [linear for linear in found if linear.weight not in by_rows]


def _covered(pathway: Pathway, source: GateSource) -> bool:
    return any(map(source.covers, GATED[pathway.kind][1](pathway)))


def _only_linears(node: fx.Node) -> bool:
    return all(is_call(user, "linear") or str(user.target).startswith(GATED_OPS) for user in node.users)


def _recorded(node: fx.Node) -> dict[str, Any] | None:
    """What Dynamo recorded of a weight while it traced, its "stride" too. None where this torch has no such place.

    The guards that it is about to build expect what the record says, and are checked right after it has compiled: the
    strides there must be those that the weight has then. With others, packing would make it compile again.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        sizes_strides = InstructionTranslator.current_tx().output.input_source_to_sizes_strides
        recorded = cast("dict[str, Any]", sizes_strides[node.meta["grapharg"].source])
        recorded["stride"]
    except (AttributeError, KeyError, TypeError) as error:
        log.info("%s stays by rows: Dynamo's record of its strides was not found (%r)", node.name, error)
        return None
    return recorded
