"""What gates take and save: the lines, the thresholds found by counting, and ops whose gate never pays."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srrc.control.gate_time import NEVER, GateTime
from srrc.runtime.gate_times import FRACTIONS, BranchCall, GatedCall, branch_times, gate_times
from srrc.runtime.gates import Gate


def gate(name: str) -> Gate:
    return Gate(name, "decode", torch.tensor([0.5, 0.25]), torch.tensor([7, 5, 1]), 2.0, 4.0)


class Clock:
    """Time that passes only when an op says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def op(clock: Clock, gate: Gate, unit: float, deciding: float):
    """An op over 64 units of score 1/64, 2/64 .. 1 that takes `unit` seconds for each kept one."""
    scores = torch.arange(1, 65) / 64

    def run() -> None:
        kept = int((~(scores <= gate.record[0])).sum())
        gate.counters.add_(torch.tensor([64, kept, 0]))
        clock.now += unit * kept + (deciding if gate.record[0] >= 0 else 0.0)

    return run


@pytest.mark.parametrize(
    ("opened", "dropping", "expected"),
    [
        (10.0, (11.0, 8.5, 6.0), 0.1),
        (10.0, (9.0, 7.0, 5.0), 0.0),
        (10.0, (10.5, 10.5, 6.0), 0.25 + 0.25 * 0.5 / 4.5),  # gaps cost what a quarter saves
        (10.0, (9.9, 10.5, 9.5), 0.375),  # what is seen at 0 is noise
        (10.0, (14.0, 13.0, 11.0), 0.625),  # beyond what was timed
        (10.0, (12.0, 12.0, 12.0), NEVER),
        (10.0, (30.0, 29.5, 29.0), NEVER),
        (10.0, (9.0, 9.0, 11.0), NEVER),
    ],
)
def test_the_crossing(opened, dropping, expected):
    held = GateTime(opened, tuple(zip(FRACTIONS, dropping, strict=True)))
    assert held.break_even == pytest.approx(expected)


def test_a_cheap_decision_pays_early_and_a_dear_one_never():
    cheap, dear = gate("cheap"), gate("dear")
    clock = Clock()
    calls = [
        GatedCall(op(clock, cheap, 2e-5, 4e-4), [cheap], "cheap"),
        GatedCall(op(clock, dear, 2e-6, 2e-3), [dear], "dear"),
    ]
    found = gate_times(calls, clock)
    assert found["cheap"].break_even == pytest.approx(
        4e-4 / (64 * 2e-5), rel=0.05
    )  # what deciding costs, in units
    assert found["dear"].break_even == NEVER


def test_rows_that_agree_by_chance_alone_must_each_drop_more():
    alone, together = gate("alone"), dataclasses.replace(gate("together"), rows=4)
    clock = Clock()
    calls = [GatedCall(op(clock, own, 2e-5, 4e-4), [own], own.id) for own in (alone, together)]
    found = gate_times(calls, clock)
    assert found["together"].break_even == pytest.approx(found["alone"].break_even ** 0.25)


def test_records_and_counters_end_where_they_were():
    own = gate("own")
    gate_times([GatedCall(op(Clock(), own, 1e-7, 0.0), [own], "own")])
    assert own.record.tolist() == [0.5, 0.25]
    assert own.counters.tolist() == [7, 5, 1]


def test_a_branch_pays_from_what_deciding_costs_of_running_it():
    clock = Clock()

    def taking(seconds: float):
        def act() -> None:
            clock.now += seconds

        return act

    one, other, dear = gate("one"), gate("other"), gate("dear")
    calls = [
        BranchCall(taking(2e-6), taking(1e-5), one, "same"),
        BranchCall(taking(4e-6), taking(1e-5), other, "same"),
        BranchCall(taking(2e-6), taking(1e-6), dear, "alone"),
    ]
    masked = gate("residual:masked")
    found = branch_times(calls, [one, other, dear, masked], clock)
    assert found.keys() == {"one", "other", "dear", "residual:masked"}
    assert found["residual:masked"].break_even == NEVER
    assert (
        found["one"].break_even == found["other"].break_even == pytest.approx(0.3)
    )  # equal regions are measured together
    assert found["dear"].break_even == NEVER
    assert one.counters.tolist() == [7, 5, 1]


@given(st.lists(st.floats(1e-6, 1.0), min_size=4, max_size=4), st.floats(0.0, 1.0))
def test_a_gate_saves_time_from_its_break_even_on_where_time_falls(seconds, beyond):
    """Between its points a gate's time is a line: what is saved crosses nothing at the break-even."""
    opened, *dropping = seconds
    dropping = sorted(dropping, reverse=True)
    held = GateTime(opened, tuple(zip(FRACTIONS, dropping, strict=True)))
    at = held.break_even
    if at < NEVER and dropping[0] > opened:
        assert held.saved(at) == pytest.approx(0.0, abs=1e-9)
        assert held.saved(at + (1 - at) * beyond) >= -1e-9
    assert held.saved(0.0) == 0.0


def test_rows_that_are_computed_together_save_what_all_of_them_drop():
    held = GateTime(4.0, ((0.0, 4.5), (0.25, 3.5), (0.5, 2.5)), rows=2)
    assert held.saved(0.5) == pytest.approx(0.5)
    assert held.saved(1.0) == pytest.approx(3.5)
