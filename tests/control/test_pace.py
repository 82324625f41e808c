"""A budget in time."""

import random
from itertools import pairwise

import pytest

from srrc.control.pace import FIRST, GRADUAL, LEAST, PATIENCE, STEP, WINDOW, Pace

DENSE = 20e-3


def saves(fraction: float) -> float:
    """A machine on which all but a fifth of a call shrinks with its cost, as predicted."""
    return 0.8 * DENSE * (1 - fraction)


def drive(
    pace: Pace, calls: int, worth: float = 1.0, grows: float = 0.0, noise: float = 0.0, seed: int = 0
) -> list[float]:
    """Seconds of each call on a machine where a plan saves `worth` of what is predicted."""
    draw, taken = random.Random(seed), []
    for call in range(calls):
        seconds = DENSE + grows * call - worth * saves(pace.fraction)
        taken.append(seconds)
        pace.took(seconds * (1 + noise * draw.expovariate(1)), saves)
    return taken


def test_it_begins_dense_and_falls_gradually() -> None:
    pace, fractions = Pace(9e-3), []
    for _ in range(1 + FIRST + 8 * WINDOW):
        fractions.append(pace.fraction)
        drive(pace, 1)
    assert fractions[: 1 + FIRST] == [1.0] * (1 + FIRST)
    assert all(before - after <= GRADUAL + 1e-9 for before, after in pairwise(fractions))
    assert not pace.late


@pytest.mark.parametrize(
    ("worth", "target"),
    [(0.7, 13e-3), (0.7, 18e-3), (1.0, 10e-3), (1.0, 13e-3), (1.0, 18e-3), (1.3, 10e-3), (1.3, 18e-3)],
)
def test_calls_take_what_was_asked_for_though_predictions_are_off(worth: float, target: float) -> None:
    pace = Pace(target)
    taken = drive(pace, 1 + FIRST + 20 * WINDOW, worth, noise=0.02)
    assert max(taken[-4 * WINDOW :]) <= 1.01 * target
    assert min(taken[-4 * WINDOW :]) >= 0.9 * target
    assert pace.fraction == pytest.approx(round(pace.fraction / STEP) * STEP, abs=GRADUAL)


def test_it_follows_calls_that_become_slower_and_quicker() -> None:
    pace = Pace(13e-3)
    drive(pace, 600)
    before = pace.fraction
    taken = drive(pace, 600, grows=4e-6)
    assert max(taken) < 1.06 * 13e-3
    assert pace.fraction < before
    drive(pace, 900)
    assert pace.fraction == pytest.approx(before, abs=2 * STEP)


def test_a_time_that_dense_calls_keep_leaves_them_dense() -> None:
    pace = Pace(25e-3)
    drive(pace, 600)
    assert pace.fraction == 1.0
    assert pace.dense == DENSE


def test_a_time_out_of_reach_is_said_to_be() -> None:
    pace = Pace(2e-3)
    drive(pace, 1000)
    assert pace.fraction == LEAST
    assert pace.late
    drive(pace, 300, grows=0.0, worth=1.25)
    assert pace.late


def test_gates_that_save_nothing_are_left_open() -> None:
    pace = Pace(9e-3)
    for _ in range(1000):
        pace.took(DENSE, lambda fraction: 0.0)
    assert pace.fraction == 1.0
    assert pace.late


def test_gates_that_save_more_than_was_asked_for_are_not_opened_and_closed_in_turn() -> None:
    pace, fractions = Pace(0.985 * DENSE), []
    for _ in range(1 + FIRST + 24 * WINDOW):
        fractions.append(pace.fraction)
        seconds = DENSE if pace.fraction == 1.0 else 0.9 * DENSE  # whatever is closed first saves a tenth
        pace.took(seconds, lambda fraction: 0.0 if fraction == 1.0 else 0.1 * DENSE)
    settled = fractions[1 + FIRST + WINDOW :]
    assert sum(fraction == 1.0 for fraction in settled) < len(settled) / PATIENCE
