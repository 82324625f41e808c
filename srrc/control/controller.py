"""Budget -> plan: spends a budget by marginal SR, the drift that a gate's next units would cost per cost that
they save.

Every gate's curve is reduced to its convex hull; all segments are taken cheapest slope first until enough is
saved, the last one in part. This is the Lagrangian knapsack of the SRR paper's formula, SR = I / C, and
optimal over the hulls.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from srrc.control.curve import Corner, Segment, corners, segments
from srrc.control.joint import Correction
from srrc.control.plan import PhaseCost, Plan, Record
from srrc.errors import OptionError
from srrc.profile import GateCost, GateProfile, Profile

_SLACK = 1e-12

_HALVINGS = 40
"""Steps to the sum of savings that gives the wanted one where some gates stand inside others."""


@dataclass(frozen=True)
class Allocation:
    """Where each gate stops: its point by gate id (open gates are not named), and the slope at which it was
    cut.
    """

    points: Mapping[str, Corner]
    slopes: Mapping[str, float]
    price: float

    @property
    def saved(self) -> float:
        """Share of the dense cost saved."""
        return sum(point.saved for point in self.points.values())

    @property
    def drift(self) -> float:
        """Sum of the gates' own drifts, nats a token."""
        return sum(point.drift for point in self.points.values())


def plan(
    profile: Profile,
    *,
    budget: float | None = None,
    max_drift: float | None = None,
    phases: Mapping[str, PhaseCost] | None = None,
) -> Plan:
    """The plan for a budget (a share of the dense cost), a tolerated drift (nats a token), or both.

    `max_drift` wins: a budget that would exceed it is not reached. With neither, or a budget of 1, all gates
    are open.
    phases: costs as they are in the compiled graphs; by default those of the profile, of decoding alone.
    Raises OptionError for numbers out of range.
    """
    if budget is not None and not 0 < budget <= 1:
        raise OptionError(f"budget={budget!r} is out of range; give a fraction of the dense cost in (0, 1]")
    if max_drift is not None and not max_drift >= 0:
        raise OptionError(f"max_drift={max_drift!r} is out of range; give nats a token, 0 or more")
    phases = default_phases(profile) if phases is None else phases
    correction = Correction(profile.joint)
    allowed = None if max_drift is None else correction.allowed(max_drift)
    chosen = {
        name: _allocate_phase(profile, phase, budget, allowed)
        for name, phase in phases.items()
        if phase.saves
    }
    thresholds = {name: _records(profile, chosen.get(name)) for name in phases}
    allocation = chosen.get("decode") or next(iter(chosen.values()), Allocation({}, {}, 0.0))
    phase = phases.get("decode") or next(iter(phases.values()), PhaseCost(0.0, 0.0, {}))
    flops, size = _shares(profile, allocation.points, phase)
    return Plan(
        budget=budget,
        max_drift=max_drift,
        thresholds=thresholds,
        fractions={gate: point.fraction for gate, point in allocation.points.items()},
        spent=1.0 - allocation.saved + _twice(profile, allocation.points),
        flops=flops,
        bytes=size,
        drift=correction.predict(allocation.drift),
        added=allocation.drift,
        price=allocation.price,
        relevance=_relevance(profile, allocation, phase),
    )


def default_phases(profile: Profile) -> dict[str, PhaseCost]:
    """Decoding one row, with the profile's own costs; the dense cost is that of what its gates stand on.

    A gate on a branch stands around others, on the same work: it counts only where there are no others.
    """
    gates = {name: gate.cost for name, gate in profile.gates.items()}
    inner = [gate.cost for gate in profile.gates.values() if gate.kind != "residual"] or [*gates.values()]
    flops = sum(cost.units * cost.flops for cost in inner)
    size = sum(cost.units * cost.bytes + cost.spared_bytes for cost in inner)
    return {"decode": PhaseCost(flops, size, gates)}


def allocate(
    pieces: Iterable[Segment], *, saving: float | None = None, drift: float | None = None
) -> Allocation:
    """Take segments, cheapest slope first, until `saving` is reached or the next would exceed `drift`.

    With neither nothing is taken. Where both are given, `drift` wins.
    """
    points: dict[str, Corner] = {}
    slopes: dict[str, float] = {}
    left_out: set[str] = set()
    price, saved, spent = 0.0, 0.0, 0.0
    wanted = (float("inf") if drift is not None else 0.0) if saving is None else saving
    for piece in sorted(pieces, key=lambda segment: segment.slope):
        if saved >= wanted - _SLACK:
            break
        if piece.gate in left_out:
            continue
        gain, cost = piece.end.saved - piece.start.saved, piece.end.drift - piece.start.drift
        share = 1.0 if piece.whole else min(1.0, (wanted - saved) / gain)
        if drift is not None and spent + share * cost > drift:
            if piece.whole:
                left_out.add(piece.gate)
                continue
            share = max(0.0, (drift - spent) / cost) if cost > 0 else share
        if share <= 0:
            break
        points[piece.gate] = piece.part(share)
        slopes[piece.gate] = price = piece.slope
        saved, spent = saved + share * gain, spent + share * cost
        if share < 1.0:
            break
    return Allocation(points, slopes, price)


def _allocate_phase(
    profile: Profile, phase: PhaseCost, budget: float | None, allowed: float | None
) -> Allocation:
    if (budget is None or budget == 1.0) and allowed is None:
        return Allocation({}, {}, 0.0)
    pieces = [
        piece
        for name, gate in profile.gates.items()
        if name in phase.gates
        for piece in _segments(gate, phase.gates[name], phase)
    ]
    if budget is None:
        return allocate(pieces, drift=allowed)
    found = allocate(pieces, saving=1.0 - budget, drift=allowed)
    if not _twice(profile, found.points):
        return found
    low, high = 1.0 - budget, 4.0  # as sums over gates; counted once it grows with the sum
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        found = allocate(pieces, saving=middle, drift=allowed)
        enough = found.saved - _twice(profile, found.points) >= 1.0 - budget
        low, high = (low, middle) if enough else (middle, high)
    return allocate(pieces, saving=high, drift=allowed)


def _twice(profile: Profile, points: Mapping[str, Corner]) -> float:
    """Share of the dense cost that is saved twice in a sum over gates: by a gate, and by the one around it."""
    return sum(point.saved * _left_out(profile, points, name) for name, point in points.items())


def _left_out(profile: Profile, points: Mapping[str, Corner], name: str) -> float:
    """The fraction of rows for which the gate is not there, because the one around it leaves out its branch."""
    outer = points.get(profile.gates[name].around)
    return 0.0 if outer is None else outer.fraction


def _segments(gate: GateProfile, cost: GateCost, phase: PhaseCost) -> Sequence[Segment]:
    unit = _share(cost.units * cost.flops, cost.units * cost.bytes, phase)
    bytes_there = cost.fixed_bytes - cost.spared_bytes
    fixed = _share(cost.units * cost.overhead + cost.fixed_flops, bytes_there, phase)
    curve = corners(gate.fractions.tolist(), gate.drift.tolist(), unit, fixed)
    return segments(gate.id, curve, whole_first=fixed < 0)


def _share(flops: float, size: float, phase: PhaseCost) -> float:
    """Share of the phase's dense cost: FLOPs and bytes count alike."""
    shares = [part / whole for part, whole in ((flops, phase.flops), (size, phase.bytes)) if whole > 0]
    return sum(shares) / len(shares) if shares else 0.0


def _records(profile: Profile, allocation: Allocation | None) -> dict[str, Record]:
    if allocation is None:
        return {}
    gates = {name: profile.gates[name] for name in allocation.points}
    fractions = {name: point.fraction for name, point in allocation.points.items()}
    return {
        name: (gate.threshold(fractions[name]), gate.min_kept(fractions[name]))
        for name, gate in gates.items()
    }


def _shares(profile: Profile, points: Mapping[str, Corner], phase: PhaseCost) -> tuple[float, float]:
    """Shares of the dense FLOPs and bytes that are left."""
    flops, size = phase.flops, phase.bytes
    for name, point in points.items():
        cost, there = phase.gates[name], 1.0 - _left_out(profile, points, name)
        flops += there * (cost.units * (cost.overhead - point.fraction * cost.flops) + cost.fixed_flops)
        size += there * (cost.fixed_bytes - cost.spared_bytes - point.fraction * cost.units * cost.bytes)
    return flops / phase.flops if phase.flops else 1.0, size / phase.bytes if phase.bytes else 1.0


def _relevance(profile: Profile, allocation: Allocation, phase: PhaseCost) -> dict[str, float]:
    """Nats per FLOP at the margin, by gate id and by pathway (the least of its gates': the next to go)."""
    found: dict[str, float] = {}
    for name, slope in allocation.slopes.items():
        worth = slope / phase.flops if phase.flops else 0.0
        gate = profile.gates[name]
        found[name] = worth
        pathway = f"{gate.kind}:{gate.place}"
        found[pathway] = min(worth, found.get(pathway, worth))
    return found
