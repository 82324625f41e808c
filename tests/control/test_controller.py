import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.controller import allocate, default_phases, plan
from srrc.control.curve import corners, segments
from srrc.control.plan import PhaseCost
from srrc.errors import OptionError
from srrc.profile import GateCost, GateProfile, Joint, Profile

FRACTIONS = [0.0, 0.2, 0.4, 0.6, 0.8]


def gate(name: str, drift: list[float], cost: GateCost) -> GateProfile:
    return GateProfile(
        id=name,
        quantiles=torch.linspace(0, 1, 101) ** 2,
        fractions=torch.tensor(FRACTIONS),
        drift=torch.tensor(drift),
        error=torch.zeros(5),
        kept_low=torch.tensor([1.0, 0.7, 0.5, 0.3, 0.1]),
        cost=cost,
    )


COSTS = st.builds(
    GateCost,
    units=st.integers(1, 100),
    flops=st.floats(1, 100),
    bytes=st.floats(1, 100),
    overhead=st.floats(0, 1),
    fixed_flops=st.floats(0, 50),
    fixed_bytes=st.floats(0, 50),
    spared_bytes=st.floats(0, 100),
)
DRIFTS = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(
    lambda steps: [0.0, *itertools.accumulate(steps)]
)
JOINTS = st.lists(st.builds(Joint, st.floats(0.001, 3), st.floats(0.001, 9), st.just(0.0)), max_size=3)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    count = draw(st.integers(1, 5))
    gates = [gate(f"channel:{index}", draw(DRIFTS), draw(COSTS)) for index in range(count)]
    return Profile({each.id: each for each in gates}, (), joint=tuple(draw(JOINTS)))


@given(profiles(), st.lists(st.floats(0.05, 1), min_size=2, max_size=2).map(sorted))
def test_a_larger_budget_never_predicts_more_drift(profile: Profile, budgets: list[float]) -> None:
    small, large = (plan(profile, budget=budget) for budget in budgets)
    assert large.drift <= small.drift * (1 + 1e-6) + 1e-9
    assert large.added <= small.added + 1e-9


@given(profiles(), st.floats(0.05, 1))
def test_a_budget_is_kept_or_nothing_more_can_be_saved(profile: Profile, budget: float) -> None:
    made = plan(profile, budget=budget)
    # The accounts agree: what the fractions save, counted again from the costs.
    flops = size = whole_flops = whole_bytes = 0.0
    for name, each in profile.gates.items():
        cost, fraction = each.cost, made.fractions.get(name, 0.0)
        whole_flops, whole_bytes = (
            whole_flops + cost.units * cost.flops,
            whole_bytes + cost.units * cost.bytes + cost.spared_bytes,
        )
        flops += cost.units * cost.flops * (1 - fraction)
        size += cost.units * cost.bytes * (1 - fraction) + cost.spared_bytes
        if name in made.fractions:
            flops += cost.units * cost.overhead + cost.fixed_flops
            size += cost.fixed_bytes - cost.spared_bytes
    assert made.flops == pytest.approx(flops / whole_flops)
    assert made.bytes == pytest.approx(size / whole_bytes)
    assert made.spent == pytest.approx((made.flops + made.bytes) / 2)
    if made.met:
        assert made.spent <= budget + 1e-6
    else:
        furthest = plan(profile, budget=1e-9)
        assert made.spent == pytest.approx(furthest.spent)


@given(profiles(), st.floats(0, 2), st.floats(0.05, 1))
def test_max_drift_wins_over_budget(profile: Profile, bound: float, budget: float) -> None:
    made = plan(profile, budget=budget, max_drift=bound)
    assert made.drift <= bound * (1 + 1e-6) + 1e-9
    free = plan(profile, budget=budget)
    assert made.spent >= free.spent - 1e-9
    if free.drift <= bound:
        assert made.spent == pytest.approx(free.spent)


@given(profiles())
def test_max_drift_alone_saves_all_that_it_allows(profile: Profile) -> None:
    loose, tight = plan(profile, max_drift=1e9), plan(profile, max_drift=0.1)
    assert loose.spent <= tight.spent + 1e-9
    assert loose.spent == pytest.approx(plan(profile, budget=1e-9).spent)


@given(profiles())
def test_a_whole_budget_opens_every_gate(profile: Profile) -> None:
    for made in (plan(profile, budget=1.0), plan(profile)):
        assert made.thresholds == {"decode": {}}
        assert (made.spent, made.flops, made.bytes, made.drift) == (1.0, 1.0, 1.0, 0.0)


@given(st.lists(st.tuples(DRIFTS, st.floats(0.05, 0.4)), min_size=1, max_size=3), st.floats(0.02, 0.6))
def test_greedy_is_optimal_on_convex_curves(gates: list[tuple[list[float], float]], saving: float) -> None:
    """Against every combination of points: none that saves as much drifts less."""
    convex = [
        (list(itertools.accumulate(sorted(b - a for a, b in itertools.pairwise(d)), initial=0.0)), unit)
        for d, unit in gates
    ]
    curves = [corners(FRACTIONS, drift, unit, 0.0) for drift, unit in convex]
    pieces = [piece for index, curve in enumerate(curves) for piece in segments(str(index), curve)]
    greedy = allocate(pieces, saving=saving)
    for choice in itertools.product(*curves):
        if sum(point.saved for point in choice) >= saving:
            assert greedy.drift <= sum(point.drift for point in choice) + 1e-9
    # And it is reached but for one gate that stops between two points.
    between = [
        p
        for p in greedy.points.values()
        if not any(math.isclose(p.fraction, f, abs_tol=1e-9) for f in FRACTIONS)
    ]
    assert len(between) <= 1


def test_the_cheapest_goes_first_and_records_follow_the_fractions() -> None:
    cost = GateCost(10, 10.0, 10.0, 0.0)
    cheap, dear = (
        gate("channel:a", [0, 0.1, 0.2, 0.3, 0.4], cost),
        gate("neuron:b/down", [0, 1, 2, 3, 4], cost),
    )
    made = plan(Profile({"channel:a": cheap, "neuron:b/down": dear}, ()), budget=0.7)
    assert made.fractions == {"channel:a": pytest.approx(0.6)}
    threshold, min_kept = made.thresholds["decode"]["channel:a"]
    assert threshold == pytest.approx(0.36)
    assert min_kept == pytest.approx(0.3)
    assert made.relevance["channel:a"] == pytest.approx(made.price / 200)
    both = plan(Profile({"channel:a": cheap, "neuron:b/down": dear}, ()), budget=0.5)
    assert both.fractions == {"channel:a": pytest.approx(0.8), "neuron:b/down": pytest.approx(0.2)}
    assert both.relevance["neuron:b"] == both.relevance["neuron:b/down"] > both.relevance["channel:a"]


def test_a_phase_that_saves_no_time_stays_dense() -> None:
    each = gate("channel:a", [0, 0.1, 0.2, 0.3, 0.4], GateCost(10, 10.0, 10.0))
    decode = PhaseCost(1000.0, 1000.0, {"channel:a": each.cost})
    prefill = PhaseCost(1000.0, 1000.0, {"channel:a": each.cost}, saves=False)
    made = plan(Profile({"channel:a": each}, ()), budget=0.97, phases={"decode": decode, "prefill": prefill})
    assert made.thresholds["prefill"] == {}
    assert made.thresholds["decode"].keys() == {"channel:a"}
    assert made.spent == pytest.approx(0.97)


def test_gates_that_are_not_in_the_graph_are_not_counted_on() -> None:
    cost = GateCost(10, 10.0, 10.0)
    gates = {name: gate(name, [0, 0.1, 0.2, 0.3, 0.4], cost) for name in ("channel:a", "channel:b")}
    phases = {"decode": PhaseCost(200.0, 200.0, {"channel:b": cost})}
    made = plan(Profile(gates, ()), budget=0.8, phases=phases)
    assert made.fractions.keys() == {"channel:b"}


def test_the_predicted_drift_is_corrected_by_what_was_measured() -> None:
    each = gate("channel:a", [0, 0.1, 0.2, 0.3, 0.4], GateCost(10, 10.0, 10.0, 0.0))
    profile = Profile({"channel:a": each}, (), joint=(Joint(0.2, 0.5, 0.01),))
    made = plan(profile, budget=0.6)
    assert (made.added, made.drift) == (pytest.approx(0.2), pytest.approx(0.5))
    assert plan(profile, max_drift=0.25).added == pytest.approx(0.1)


@pytest.mark.parametrize(
    "given", [{"budget": 0.0}, {"budget": -1.0}, {"budget": math.nan}, {"max_drift": -0.1}]
)
def test_numbers_out_of_range(given: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="out of range"):
        plan(Profile({}, ()), **given)


def test_a_gate_that_saves_by_being_there_is_taken_as_a_whole() -> None:
    """As the vocabulary head: its copy is narrower than the weight. No half of its first step can be had."""
    cost = GateCost(10, 10.0, 10.0, 0.0, spared_bytes=100.0)
    each = gate("vocab:a", [0.0, 0.1, 0.2, 0.3, 0.4], cost)
    profile = Profile({"vocab:a": each}, ())
    made = plan(profile, budget=0.99)
    assert made.fractions == {"vocab:a": pytest.approx(0.2)}
    assert made.spent == pytest.approx(1 - (0.2 + 120 / 200) / 2)
    assert plan(profile, max_drift=0.05).fractions == {}
    other = gate("channel:b", [0.0, 1.0, 2.0, 3.0, 4.0], GateCost(10, 10.0, 10.0, 0.0))
    both = plan(Profile({"vocab:a": each, "channel:b": other}, ()), max_drift=0.05)
    assert both.fractions.keys() == {"channel:b"}, "what does not fit as a whole leaves room for others"


def test_a_profile_without_gates() -> None:
    made = plan(Profile({}, ()), budget=0.5)
    assert not made.met
    assert made.spent == 1.0


@given(profiles(), COSTS, DRIFTS, st.floats(0.05, 1))
def test_what_is_left_out_as_a_whole_is_not_saved_twice(
    inner: Profile, cost: GateCost, drift: list[float], budget: float
) -> None:
    """A branch's gate stands around the others, and costs what they cost together."""
    gates = {name: dataclasses.replace(each, around="residual:a") for name, each in inner.gates.items()}
    flops = sum(each.cost.units * each.cost.flops for each in gates.values())
    size = sum(each.cost.units * each.cost.bytes + each.cost.spared_bytes for each in gates.values())
    outer = gate("residual:a", drift, GateCost(1, flops, size, overhead=0.0))
    profile = Profile({outer.id: outer, **gates}, ())
    made = plan(profile, budget=budget)
    share = made.fractions.get(outer.id, 0.0)
    left = {"flops": 1.0 - share, "bytes": 1.0 - share}
    for name, each in gates.items():
        if name not in made.fractions:
            continue
        c, dropped = each.cost, made.fractions[name] * each.cost.units
        saved = dropped * c.flops - c.units * c.overhead - c.fixed_flops
        left["flops"] -= (1 - share) * saved / flops
        left["bytes"] -= (1 - share) * (dropped * c.bytes + c.spared_bytes - c.fixed_bytes) / size
    assert made.flops == pytest.approx(left["flops"], abs=1e-5)
    assert made.bytes == pytest.approx(left["bytes"], abs=1e-5)
    assert made.spent == pytest.approx((left["flops"] + left["bytes"]) / 2, abs=1e-5)
    everything = plan(profile, budget=1e-9)
    assert made.spent <= budget + 1e-4 or made.added == pytest.approx(everything.added)


def test_the_dense_cost_counts_the_same_work_once() -> None:
    inner = [gate(f"channel:{name}", [0.0, 0.1, 0.2, 0.3, 0.4], GateCost(10, 4.0, 8.0)) for name in "ab"]
    outer = gate("residual:a", [0.0, 0.1, 0.2, 0.3, 0.4], GateCost(1, 70.0, 150.0))
    with_outer = default_phases(Profile({each.id: each for each in [outer, *inner]}, ()))["decode"]
    assert (with_outer.flops, with_outer.bytes) == (80.0, 160.0)
    assert with_outer.gates.keys() == {"residual:a", "channel:a", "channel:b"}
    alone = default_phases(Profile({outer.id: outer}, ()))["decode"]
    assert (alone.flops, alone.bytes) == (70.0, 150.0)
