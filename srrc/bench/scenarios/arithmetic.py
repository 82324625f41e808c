"""Sums and differences that a small model can do, after a few worked examples; right or wrong."""

import random
import re
from collections.abc import Sequence

from srrc.bench.scenarios.base import Scenario, Task

_EXAMPLES = "7 + 5 = 12\n9 - 6 = 3\n3 + 9 = 12\n14 - 5 = 9\n6 + 2 = 8\n10 - 7 = 3\n"


def _tasks(count: int) -> Sequence[Task]:
    draw = random.Random(0)  # noqa: S311 (no secret)
    found: dict[str, Task] = {}
    while len(found) < count:
        a, b = draw.randrange(2, 20), draw.randrange(2, 10)
        plus = draw.random() < 0.5
        a, b = (a, b) if plus else (max(a, b) + 1, min(a, b))
        prompt = f"{_EXAMPLES}{a} {'+' if plus else '-'} {b} ="
        found[prompt] = Task(prompt, (str(a + b if plus else a - b),), most=6)
    return list(found.values())


def number_of(written: str) -> str:
    """The first whole number of a text, "" where there is none."""
    found = re.search(r"-?\d+", written.replace(",", ""))
    return found[0] if found else ""


def _score(written: str, task: Task) -> float:
    return float(number_of(written) in task.answers)


ARITHMETIC = Scenario("arithmetic", "right", _tasks, _score)
