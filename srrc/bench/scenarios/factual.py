"""Factual questions about a passage (SQuAD v2), scored by F1 over words as in the paper (Rajpurkar et al. 2016)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from srrc.bench.scenarios.base import Scenario, Task
from srrc.models_zoo.questions import Question, questions

_LONGEST = 700
"""Characters of a passage, so that it fits with an example before it."""


def _tasks(count: int) -> Sequence[Task]:
    short = [each for each in questions() if len(each.passage) <= _LONGEST]
    example, *rest = short
    apart = [each for each in rest if each.title != example.title]
    step = max(1, len(apart) // count)
    head = f"{_asked(example)} {example.answers[0]}\n\n"
    return [Task(head + _asked(each), each.answers, most=16) for each in apart[::step][:count]]


def _asked(question: Question) -> str:
    return f"Passage: {question.passage}\nQuestion: {question.question}\nAnswer:"


def _score(written: str, task: Task) -> float:
    return max(f1(written, answer) for answer in task.answers)


def f1(written: str, answer: str) -> float:
    """F1 of the words, without case, punctuation and articles."""
    mine, right = _words(written), _words(answer)
    if not mine or not right:
        return float(mine == right)
    shared = sum((Counter(mine) & Counter(right)).values())
    return 2 * shared / (len(mine) + len(right))


def _words(text: str) -> list[str]:
    bare = "".join(each for each in text.lower() if each not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


FACTUAL = Scenario("factual", "F1", _tasks, _score)
