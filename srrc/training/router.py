"""What gates learn: norms in place of their weights' own, and emphasis, how much a row needs, from a few directions.

Emphasis is the semantic importance head of the paper's estimator: a linear function of a reduced input,

    z = projection @ (x / rms(x))        [D], the projection shared by the gates of neighbouring layers that read alike
    emphasis = head . z + bias           limited, see `srrc/ops/emphasis.py`

At run time the head is folded into the projection, which leaves one dot product with x a gate: 2 K FLOPs where the
linears that it guards cost thousands times K.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srrc.ops.emphasis import emphasis

REDUCED = 32
"""Directions of the reduced input."""

NEIGHBOURS = 3
"""Layers that share a projection."""

_NUMBER = re.compile(r"\d+")


class Router:
    """Parameters by name, all float32: "GATE/log_norm" [units], "GATE/head" [D + 1], "GROUP/projection" [D, K].

    units: gate id -> number of its units
    widths: gate id -> K, the width of the input of its op
    """

    def __init__(self, units: Mapping[str, int], widths: Mapping[str, int], seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {}
        self._group = _groups(list(units), widths)
        for gate, count in units.items():
            self.parameters[f"{gate}/log_norm"] = torch.zeros(count)
            self.parameters[f"{gate}/head"] = torch.zeros(REDUCED + 1)
            name = f"{self._group[gate]}/projection"
            if name not in self.parameters:
                width = widths[gate]
                self.parameters[name] = torch.randn(REDUCED, width, generator=draw) / width**0.5
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def start(self, probes: Mapping[str, Tensor]) -> None:
        """Begin with these probes [K + 1], by gate id: a group's projection is made to hold its members' directions."""
        members: dict[str, list[str]] = {}
        for gate in probes:
            members.setdefault(self._group[gate], []).append(gate)
        with torch.no_grad():
            for group, gates in members.items():
                projection = self.parameters[f"{group}/projection"]
                wanted = torch.stack([probes[gate][:-1] for gate in gates])
                directions = torch.linalg.qr(torch.cat((wanted, projection))[: len(projection)].t()).Q.t()
                projection[: len(directions)] = directions
                for gate in gates:
                    head = self.parameters[f"{gate}/head"]
                    head[:-1] = torch.linalg.lstsq(projection.t(), probes[gate][:-1, None]).solution[:, 0]
                    head[-1] = probes[gate][-1]

    def shift(self, gate: str, features: Tensor) -> Tensor:
        """What is added to a gate's log scores: [..., units] for features [..., K]."""
        return self.parameters[f"{gate}/log_norm"] + self.emphasis(gate, features)

    def emphasis(self, gate: str, features: Tensor) -> Tensor:
        """[..., 1] for features [..., K], any floating dtype."""
        return emphasis(features, self.probe(gate))

    def probe(self, gate: str) -> Tensor:
        """The head folded into its projection: float32 [K + 1]."""
        head = self.parameters[f"{gate}/head"]
        return torch.cat((head[:-1] @ self.parameters[f"{self._group[gate]}/projection"], head[-1:]))

    def vectors(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As a profile holds them: "GATE/norm" [units] and "GATE/emphasis" [K + 1]. norms: the gates' own."""
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for gate, norm in norms.items():
                found[f"{gate}/norm"] = norm * self.parameters[f"{gate}/log_norm"].exp()
                found[f"{gate}/emphasis"] = self.probe(gate).clone()
        return found


class Fixed:
    """Emphasis by probes [K + 1] that are given, by gate id; norms are the gates' own."""

    def __init__(self, probes: Mapping[str, Tensor]) -> None:
        self._probes = probes

    def shift(self, gate: str, features: Tensor) -> Tensor:
        """As `Router.shift`."""
        probe = self._probes.get(gate)
        return torch.zeros(()) if probe is None else emphasis(features, probe)


def _groups(gates: Sequence[str], widths: Mapping[str, int]) -> dict[str, str]:
    """Gate id -> name of its group: neighbouring layers' gates of one place in the layer and one width.

    Gates are alike where their ids differ in nothing but numbers; neighbours are those next to each other in order.
    """
    found: dict[str, str] = {}
    alike: dict[tuple[str, int], list[str]] = {}
    for gate in gates:
        alike.setdefault((_NUMBER.sub("N", gate), widths[gate]), []).append(gate)
    for (pattern, width), members in alike.items():
        for index, gate in enumerate(members):
            found[gate] = f"{pattern}/{width}/{index // NEIGHBOURS}"
    return found
