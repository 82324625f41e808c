"""Word problems of two steps, to be worked out in words: the last number must be right."""

import random
import re
from collections.abc import Sequence

from srrc.bench.scenarios.base import Scenario, Task

_NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Jack", "Ella")
_THINGS = ("apples", "books", "coins", "stamps", "shells", "pencils", "marbles", "cards")


def _problem(name: str, thing: str, has: int, gets: int, gives: int) -> str:
    return (
        f"Question: {name} has {has} {thing}. {name} gets {gets} more {thing}, and then gives away {gives}. "
        f"How many {thing} does {name} have now?\nAnswer:"
    )


def _worked(name: str, thing: str, has: int, gets: int, gives: int) -> str:
    held = has + gets
    return (
        f" First {name} has {has} + {gets} = {held} {thing}. "
        f"Then {name} has {held} - {gives} = {held - gives} {thing}. The answer is {held - gives}.\n\n"
    )


def _tasks(count: int) -> Sequence[Task]:
    draw = random.Random(1)  # noqa: S311 (no secret)
    drawn = dict.fromkeys(_drawn(draw) for _ in range(4 * count + 8))
    (first, second), rest = list(drawn)[:2], list(drawn)[2:]
    head = _problem(*first) + _worked(*first) + _problem(*second) + _worked(*second)
    return [
        Task(head + _problem(*each), (str(each[2] + each[3] - each[4]),), most=64) for each in rest[:count]
    ]


def _drawn(draw: random.Random) -> tuple[str, str, int, int, int]:
    has, gets = draw.randrange(3, 30), draw.randrange(2, 12)
    return draw.choice(_NAMES), draw.choice(_THINGS), has, gets, draw.randrange(1, min(has, 10))


def _score(written: str, task: Task) -> float:
    numbers = re.findall(r"\d+", written)
    return float(bool(numbers) and numbers[-1] in task.answers)


STEPS = Scenario("multi-step", "right", _tasks, _score)
