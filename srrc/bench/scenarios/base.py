"""A scenario: a kind of request, with a score for what a model writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One request.

    prompt:  to continue
    answers: that are right, any of them; none where there is no right one
    most:    new tokens at most; stop: a text that ends the answer, "" for none
    temperature: of sampling, with noise that is the same for every variant; 0 takes the likeliest token
    """

    prompt: str
    answers: tuple[str, ...]
    most: int
    stop: str = "\n"
    temperature: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """tasks(count): different ones, the same on every call. score(written, task): 0 to 1, more is better.

    measure: what the score is called.
    """

    name: str
    measure: str
    tasks: Callable[[int], Sequence[Task]]
    score: Callable[[str, Task], float]
