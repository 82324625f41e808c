"""I(p; O | C) by intervention: how far the model's output moves when one gate drops a fraction of its units.

Two passes over each batch of windows. The first collects every gate's scores. The second stops at each gate,
runs the rest of the graph with that gate closed at a few fractions, and compares outputs. Between those
fractions the drift is shaped by the gate's own response, the energy of its output's error, which is cheap to
measure at many fractions: to second order both grow alike, so their ratio changes slowly.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from srrc.relevance import scores
from srrc.relevance.drift import Drift, Measure, Reference
from srrc.relevance.replay import Place, Replay, Values, closed
from srrc.relevance.sketch import Sketch

FRACTIONS = tuple(part / 20 for part in range(20))
"""Points of every curve."""

GUARD_TAIL = 0.002
"""Share of calibration rows that may keep less than `kept_low`."""

BRANCH_FRACTIONS = (0.1, 0.3, 0.6)
"""Where to measure a branch: its unit is a whole row, and most rows need most branches."""

COARSE_FRACTIONS = (0.3, 0.6, 0.95)
"""Where to measure a branch that coarse weights stand in for: most rows can do with them."""

_RESPONSE_ROWS = 256
_RESPONSE_VALUES = 1 << 21
"""A response is measured on so many rows, or fewer where they are as wide as a vocabulary."""


@dataclass(frozen=True)
class Settings:
    """How gates are measured.

    measured:   fractions at which interventions are made, ascending; of the units that are not zero anyway
    skip_first: leading positions of each sequence whose scores are not looked at (the first token of a text
                is a sink of attention, with activations like no other's; it is never decoded, always
                prefilled)
    how:        what the output is
    """

    measured: tuple[float, ...] = (0.3, 0.5, 0.7)
    skip_first: int = 0
    how: Measure = "logits"


@dataclass
class Measured:
    """What has been seen of one gate.

    sketch:    of its scores, until `seal` reads from it `quantiles` (float32 [1025]) and `scale`, the typical
               input
    at:        the fractions at which it is intervened on
    drifts:    one each
    response, kept_low: float32, one a point of FRACTIONS
    log_norm:  mean logarithm of the norm behind the score
    """

    sketch: Sketch | None = field(default_factory=Sketch)
    quantiles: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    scale: float = 1.0
    at: tuple[float, ...] = ()
    drifts: list[Drift] = field(default_factory=list)
    response: Tensor = field(default_factory=lambda: torch.zeros(len(FRACTIONS), dtype=torch.float32))
    kept_low: Tensor = field(default_factory=lambda: torch.ones(len(FRACTIONS), dtype=torch.float32))
    units: int = 0
    log_norm: float = 0.0

    def seal(self) -> None:
        """All scores are in: keep what is needed of them, and let the sketch go."""
        assert self.sketch is not None
        self.quantiles = self.sketch.quantiles()
        self.scale = math.exp(self.sketch.log_mean() - self.log_norm)
        self.sketch = None


Output = Callable[[Any], Tensor]
"""Picks, from what the graph returns, the tensor [..., N] whose drift is measured."""


def observe(
    replay: Replay, arguments: Sequence[Any], found: Mapping[str, Measured], settings: Settings
) -> Iterator[Place]:
    """Add every gate's scores in one batch to its sketch. Yields each place once it is done."""
    for place, scored in _scored(replay, arguments):
        entry = found[place.gate.id]
        assert entry.sketch is not None
        entry.sketch.add(_without_first(scored.score, settings.skip_first))
        entry.units = scored.score.shape[-1]
        entry.log_norm = float(scored.norm.clamp(min=1e-30).log().mean())
        yield place


def guard(
    replay: Replay, arguments: Sequence[Any], found: Mapping[str, Measured], settings: Settings
) -> Iterator[Place]:
    """Bring every gate's `kept_low` up to date with one batch, without interventions. Yields each place."""
    for place, scored in _scored(replay, arguments):
        if place.gate.id.startswith("residual:"):
            found[place.gate.id].kept_low.zero_()
        else:
            _lower_kept_low(_rows(scored.score, settings), found[place.gate.id])
        yield place


def intervene(
    replay: Replay,
    arguments: Sequence[Any],
    reference: Reference,
    output: Output,
    found: Mapping[str, Measured],
    settings: Settings,
    done: Callable[[str], bool],
) -> Iterator[Place]:
    """Measure each gate's drift in one batch, given the dense `reference`, and add it to `found`.

    Gates of which `done(id)` holds are passed by. Yields each place once it is measured.
    """
    gates = [place.gate for place in replay.places]
    for values, places in _walk(replay, arguments):
        for place in places:
            entry = found[place.gate.id]
            if done(place.gate.id):
                continue
            _respond(replay, values, place, entry, settings)
            entry.at = entry.at or _measured_at(place, entry, settings.measured)
            drifts = []
            for fraction in entry.at:
                record = (_at(entry.quantiles, fraction), float(_between(entry.kept_low, fraction)))
                with closed({place.gate.id: record}, gates):
                    routed = output(replay.finish(values, place.index))
                drifts.append(reference.drift(routed))
            old = entry.drifts or [Drift()] * len(drifts)
            entry.drifts = [one + other for one, other in zip(old, drifts, strict=True)]
            yield place


def together(
    replay: Replay,
    arguments: Sequence[Any],
    reference: Reference,
    output: Output,
    records: Mapping[str, tuple[float, float]],
) -> Drift:
    """Drift in one batch with all gates at `records`, (threshold, min_kept) by gate id."""
    with closed(records, [place.gate for place in replay.places]):
        routed = output(replay.finish(replay.begin(arguments), 0))
    return reference.drift(routed)


def curve(entry: Measured) -> tuple[Tensor, Tensor]:
    """(drift, its standard error) at FRACTIONS: float32, never descending."""
    fractions = torch.tensor(FRACTIONS, dtype=torch.float64)
    response = entry.response.to(torch.float64).cummax(0).values
    at = torch.tensor(entry.at, dtype=torch.float64)
    local = _linear(response, fractions, at)
    means = torch.tensor([drift.mean for drift in entry.drifts], dtype=torch.float64)
    errors = torch.tensor([drift.error for drift in entry.drifts], dtype=torch.float64)
    usable = (local > 0) & (means > 0)
    if (
        not usable.any()
    ):  # nothing moved, or nothing can be told: what was measured, straight between the points
        known = torch.cat((torch.zeros(1, dtype=torch.float64), means))
        places = torch.cat((torch.zeros(1, dtype=torch.float64), at))
        drift = _linear(known, places, fractions)
        return drift.cummax(0).values.float(), _linear(errors, at, fractions).float()
    ratio = (means[usable] / local[usable]).log()
    drift = (response * _linear(ratio, at[usable], fractions).exp()).cummax(0).values
    relative = _linear(errors[usable] / means[usable], at[usable], fractions)
    return drift.float(), (drift * relative).float()


def _measured_at(place: Place, entry: Measured, measured: Sequence[float]) -> tuple[float, ...]:
    if place.gate.id.startswith("residual:"):
        fractions = COARSE_FRACTIONS if place.gate.id.endswith("/coarse") else BRANCH_FRACTIONS
        return fractions if len(measured) > 1 else fractions[1:2]
    is_head = place.gate.id.startswith("vocab:")
    return _past_the_free(entry.response, _late(measured) if is_head else measured)


def _late(measured: Sequence[float]) -> tuple[float, ...]:
    """Where to measure a vocabulary head: most directions of its rotated input hardly matter to any one
    context, so it is worth closing much further than other gates (0.3, 0.5, 0.7 become 0.59, 0.82, 0.95).
    """
    return tuple(1 - (1 - fraction) ** 2.5 for fraction in measured)


def _past_the_free(response: Tensor, measured: Sequence[float]) -> tuple[float, ...]:
    """The fractions to measure at, squeezed into the part where anything that is not zero is dropped."""
    free = max(fraction for fraction, energy in zip(FRACTIONS, response.tolist(), strict=True) if energy == 0)
    return tuple(free + (1 - free) * fraction for fraction in measured)


def _walk(replay: Replay, arguments: Sequence[Any]) -> Iterator[tuple[Values, list[Place]]]:
    """The values alive before each gated node of a dense run, and the gates on it."""
    values, position = replay.begin(arguments), 0
    with closed({}, [place.gate for place in replay.places]):
        for index in dict.fromkeys(place.index for place in replay.places):
            replay.advance(values, position, index)
            position = index
            yield values, [place for place in replay.places if place.index == index]


def _scored(replay: Replay, arguments: Sequence[Any]) -> Iterator[tuple[Place, scores.Scored]]:
    """Every gate of a dense run, and its scores."""
    for values, places in _walk(replay, arguments):
        called = replay.arguments(values, places[0].index)
        rows = scores.scores(replay.nodes[places[0].index], called)
        yield from ((place, rows[place.row]) for place in places)


def _respond(replay: Replay, values: Values, place: Place, entry: Measured, settings: Settings) -> None:
    """Bring `kept_low` up to date with one batch; fill in `response` from the first."""
    node, called = replay.nodes[place.index], replay.arguments(values, place.index)
    score = _rows(scores.scores(node, called)[place.row].score, settings)
    if place.gate.id.startswith("residual:"):
        _respond_as_predicted(score, entry)
        return
    _lower_kept_low(score, entry)
    if entry.drifts:
        return
    x = _without_first(called["x"], settings.skip_first).reshape(-1, called["x"].shape[-1])
    width = int(node.meta["example_value"].shape[-1])
    rows = min(len(x), _RESPONSE_ROWS, max(_RESPONSE_VALUES // width, 1))
    called = {**called, "x": x[torch.linspace(0, len(x) - 1, rows, dtype=torch.float32).long()]}
    with torch.no_grad():
        dense = node.target(**called)  # type: ignore[operator]
        for index, fraction in enumerate(FRACTIONS[1:], 1):
            with closed({place.gate.id: (_at(entry.quantiles, fraction), 0.0)}, [place.gate]):
                routed = node.target(**called)  # type: ignore[operator]
            entry.response[index] += float((routed.float() - dense.float()).pow(2).sum())


def _lower_kept_low(score: Tensor, entry: Measured) -> None:
    few = max(1, round(GUARD_TAIL * len(score)))
    for index, fraction in enumerate(FRACTIONS[1:], 1):
        kept = (~(score <= _at(entry.quantiles, fraction))).sum(-1)
        # Half a unit less, so that rounding cannot fail a row that keeps just as many.
        low = (float(kept.kthvalue(few).values) - 0.5) / score.shape[-1]
        entry.kept_low[index] = min(max(low, 0.0), float(entry.kept_low[index]))


def _rows(score: Tensor, settings: Settings) -> Tensor:
    """[rows, units], without the first positions."""
    return _without_first(score, settings.skip_first).reshape(-1, score.shape[-1])


def _respond_as_predicted(score: Tensor, entry: Measured) -> None:
    """For a branch, one unit a row. Response: the energy, relative to the stream's, that the dropped rows' branches
    are predicted to add. A row keeps all or nothing, and neither is outside of what was calibrated.
    """
    entry.kept_low.zero_()
    for index, fraction in enumerate(FRACTIONS[1:], 1):
        dropped = score[score <= _at(entry.quantiles, fraction)]
        entry.response[index] += float(dropped.double().square().sum())


def _without_first(value: Tensor, skip: int) -> Tensor:
    """`value` [..., length, units] without the first positions; a value with no length keeps all it has."""
    return value[..., skip:, :] if value.dim() >= 3 and value.shape[-2] > skip else value


def _at(quantiles: Tensor, fraction: float) -> float:
    return float(_between(quantiles, fraction, torch.linspace(0, 1, len(quantiles), dtype=torch.float32)))


def _between(values: Tensor, fraction: float, at: Tensor | None = None) -> Tensor:
    at = torch.tensor(FRACTIONS, dtype=torch.float32) if at is None else at
    return _linear(values.double(), at.double(), torch.tensor([fraction], dtype=torch.float64))[0]


def _linear(values: Tensor, at: Tensor, points: Tensor) -> Tensor:
    """`values` at `points` of the ascending `at`: linear between entries, constant outside."""
    if len(at) == 1:
        return values.expand(len(points))
    upper = torch.searchsorted(at, points).clamp(1, len(at) - 1)
    low, high = at[upper - 1], at[upper]
    share = ((points - low) / (high - low)).clamp(0, 1)
    return values[upper - 1] * (1 - share) + values[upper] * share
