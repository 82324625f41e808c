"""Requests of each kind, and how answers to them are scored."""

import re

import pytest

from srrc.bench.scenarios import SCENARIOS, Scenario
from srrc.bench.scenarios.creative import distinct
from srrc.bench.scenarios.factual import f1
from srrc.bench.scores import scores
from srrc.models_zoo import texts
from srrc.models_zoo.questions import questions

RUN = 13
"""Words in a row that two texts do not share by chance: the measure of GPT-3's study of contamination."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_requests_are_different_and_the_same_each_time(scenario: Scenario) -> None:
    tasks = scenario.tasks(12)
    assert len({task.prompt for task in tasks}) == len(tasks) == 12
    assert tasks == scenario.tasks(12)
    for task in tasks:
        for answer in task.answers:
            assert scenario.score(f" {answer}", task) == 1.0
        assert 0 <= scenario.score(" nothing of the kind, of the kind", task) <= 1.0
        if task.answers:
            assert scenario.score(" nothing of the kind", task) < 1.0
            assert scenario.score("", task) == 0.0


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_no_request_was_calibrated_or_trained_on(scenario: Scenario) -> None:
    seen = {
        run for domain in texts.domains() for text in texts.split(domain, "calibration") for run in runs(text)
    }
    asked = {run for task in scenario.tasks(40) for run in runs(task.prompt)}
    assert asked or scenario.name == "arithmetic"  # whose prompts have hardly a word
    assert not seen & asked


def test_held_out_text_shares_no_run_of_words_with_what_is_calibrated_on() -> None:
    for domain in texts.domains():
        parts = [[set(runs(text)) for text in texts.split(domain, part)] for part in texts.PARTS]
        seen = set().union(*parts[0])
        shared = sum(len(each & seen) for each in parts[1])
        assert shared < 0.01 * sum(map(len, parts[1])), domain  # phrases that a manual says often


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}


@pytest.mark.parametrize(
    ("written", "answer", "score"),
    [
        ("The Denver Broncos", "Denver Broncos", 1.0),
        ("broncos.", "Denver Broncos", 2 / 3),
        ("Carolina", "Denver Broncos", 0.0),
        ("", "Denver Broncos", 0.0),
        ("the the", "an", 1.0),
    ],
)
def test_f1_of_words(written: str, answer: str, score: float) -> None:
    assert f1(written, answer) == pytest.approx(score)


def test_what_is_not_repeated() -> None:
    assert distinct("one two three four five six") == 1.0
    assert distinct("a b c d a b c d a b c d") == pytest.approx(4 / 9)
    assert distinct("a b") == 1.0


def test_questions_have_answers_in_their_passages() -> None:
    found = questions()
    assert len(found) > 500
    for each in found:
        assert any(answer in each.passage for answer in each.answers)
        assert each.question.strip()


def test_scores_are_against_eager_and_count_what_was_spent() -> None:
    tasks = SCENARIOS[2].tasks(4)
    right = [f" {task.answers[0]}" for task in tasks]
    eager = written(right, [[1, 2, 3]] * 4, {})
    mine = written(
        [*right[:3], " no"], [[1, 2, 3]] * 3 + [[1, 5]], {"flops_executed": 6.0, "flops_dense": 10.0}
    )
    found = scores({"arithmetic": mine}, {"arithmetic": eager}, 4)
    assert found.keys() == {"arithmetic"}
    told = found["arithmetic"]
    assert (told["score"], told["change"], told["same"]) == (0.75, -0.25, 0.75)
    assert told["change_interval"][0] < -0.25 < told["change_interval"][1]
    assert told["agreed"] == 10 / 12
    assert told["flops_of_dense"] == 0.6
    assert told["bytes_of_dense"] is None
    alone = scores({"arithmetic": mine}, {}, 4)["arithmetic"]
    assert alone["change"] is None


def written(answers: list[str], tokens: list[list[int]], work: dict[str, float]) -> dict[str, object]:
    return {"texts": answers, "tokens": tokens, "work": work}
