"""What the gates of an ONNX model are made from, wherever its graph comes from."""

from collections.abc import Mapping

from torch import Tensor

from srrc.fuel import fuel
from srrc.passes.gating.blocks import BLOCKS
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile

KINDS = frozenset({"residual", "vocab"})
"""Kinds of pathway all of whose gates ONNX has."""


def gate_source(profile: Profile, fqns: Mapping[str, str], weights: Mapping[str, Tensor]) -> GateSource:
    """The profile's gates. fqns, weights: by placeholder.

    Raises ProfileError for a profile of other weights, OptionError for a `SRRC_FUEL` that is no number.
    """
    profile.check({fqns[placeholder]: weight for placeholder, weight in weights.items()})
    return GateSource(
        covers=lambda gate: (
            profile.covers(gate) and (gate.split(":", 1)[0] in KINDS or gate.endswith(BLOCKS))
        ),
        weights=weights,
        vectors=profile.vectors,
        many_rows=True,
        coarse=True,
        blocks=True,
        fuel=fuel(),
    )
