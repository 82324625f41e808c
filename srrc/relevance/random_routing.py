"""Random routing, to compare with: the same gates at the same fractions, dropping units drawn by lot.

Nothing in the ops or the controller knows of it. A gate scores |input| * norm; here the norm of unit k is
exp(span * (u_k - 1/2)) with u_k drawn evenly from 0..1. The span is so wide that the lot decides and the
input hardly matters, so the units that fall under a threshold are the same random ones for every token.
"""

import dataclasses
import math

import torch
from torch import Tensor

from srrc.profile import GateProfile, Profile

_SPAN = 120.0
"""e^(span / 2) times any sensible activation is still a finite float32; the spread of an activation, some e^3
either way, moves a unit by a fortieth of the range."""


def randomised(profile: Profile, seed: int = 0) -> Profile:
    """A profile whose gates choose by lot, with the curves (so the fractions per budget) of `profile`.

    Gates whose score has no norm of its own (the vocabulary's, branches') are left out. The predicted drift of
    its plans means nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    gates: dict[str, GateProfile] = {}
    vectors: dict[str, Tensor] = dict(profile.vectors)
    for name, gate in profile.gates.items():
        if gate.kind in {"vocab", "residual"}:
            continue
        lots = torch.rand(gate.cost.units, generator=generator, dtype=torch.float32)
        vectors[f"{name}/norm"] = (_SPAN * (lots - 0.5)).exp()
        gates[name] = dataclasses.replace(gate, quantiles=_quantiles(lots, gate.scale), kept_low=_zeros(gate))
    return dataclasses.replace(profile, gates=gates, vectors=vectors, joint=())


def _quantiles(lots: Tensor, scale: float, count: int = 1025) -> Tensor:
    """Thresholds that drop the wanted fraction of these very units, at an input of typical size."""
    ordered = lots.sort().values
    wanted = torch.quantile(ordered, torch.linspace(0, 1, count, dtype=torch.float32))
    return (_SPAN * (wanted - 0.5) + math.log(max(scale, 1e-30))).exp()


def _zeros(gate: GateProfile) -> Tensor:
    return torch.zeros_like(gate.kept_low)
