"""What is learned on each kind of text, kept in memory and in a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from srrc.control.history import CONTEXTS, PLANS, History, Learned
from srrc.control.history_file import load, save
from srrc.control.plan import Plan
from srrc.control.regulator import Regulator
from srrc.errors import ProfileError

AXES = torch.eye(8)


def plan(spent: float) -> Plan:
    thresholds = {"decode": {"channel:a": (0.1, 0.25), "channel:b": (1 / 3, 0.0)}}
    return Plan(
        budget=0.5,
        thresholds=thresholds,
        fractions={"channel:a": spent},
        spent=spent,
        relevance={"channel:a": 1e-12},
        reverted=frozenset({"channel:c"}),
    )


def taught() -> History:
    """Two contexts, one with two domains, each with something learned."""
    history = History("profile")
    for context, axis, factor in (("", 0, 2.0), ("", 1, 3.0), ("legal", 0, 5.0)):
        learned = history.place(context, AXES[axis])
        learned.beliefs.explored("channel:a", 0.01, factor * 0.01)
        learned.explored = 1
        learned.regulators[0.02] = Regulator(0.02, 0.08, level=factor / 1000, watching=3)
        learned.plan("key", lambda factor=factor: plan(factor / 10))  # type: ignore[misc]
    return history


def seen(history: History) -> list[object]:
    """All of a history, for comparison."""
    return [
        (name, number, learned.beliefs.state(), learned.regulators, learned.plans, learned.seconds)
        for name, space in history.spaces.items()
        for number, learned in [*space.learned.items(), (-1, space.rest)]
    ]


def test_the_second_request_of_a_kind_finds_its_plan() -> None:
    history = taught()
    found = history.place("", torch.nn.functional.normalize(AXES[0] + 0.1 * AXES[5], dim=0))
    history.count(found)
    assert found.plans["key"].spent == 0.2
    other = history.place("", AXES[4])
    history.count(other)
    assert (history.hits, history.misses) == (1, 1)
    assert history.seconds_saved == found.seconds > 0
    assert not other.plans


def test_a_new_domain_believes_what_its_nearest_does_and_is_cautious() -> None:
    history = taught()
    made = history.place("", torch.nn.functional.normalize(AXES[1] * 0.4 + AXES[6], dim=0))
    assert made.beliefs.factor("channel:a") == history.space("").learned[1].beliefs.factor("channel:a")
    assert not made.regulators
    made.beliefs.explored("channel:a", 0.01, 0.08)
    assert made.beliefs.factor("channel:a") != history.space("").learned[1].beliefs.factor("channel:a")


def test_contexts_are_apart() -> None:
    history = taught()
    before = seen(history)
    fresh = history.place("medical", AXES[0])
    assert not fresh.plans
    assert fresh.beliefs.factor("channel:a") == 1.0
    fresh.beliefs.explored("channel:a", 0.01, 1.0)
    fresh.plan("key", lambda: plan(0.9))
    assert seen(history)[: len(before)] == before


def test_texts_that_are_too_short_join_and_never_found() -> None:
    history = taught()
    assert history.find("", AXES[1]) is history.space("").learned[1]
    assert history.find("", AXES[4]) is history.space("").rest
    assert len(history.space("").domains.known) == 2


def test_plans_and_contexts_are_bounded() -> None:
    learned = Learned()
    for number in range(PLANS + 3):
        learned.plan(str(number), lambda: plan(0.5))
        learned.plan("0", lambda: plan(0.5))  # used again and again: never the oldest
    assert len(learned.plans) == PLANS
    assert {"0", str(PLANS + 2)} < learned.plans.keys()
    history = History("profile")
    for number in range(CONTEXTS + 2):
        history.space(str(number))
    assert len(history.spaces) == CONTEXTS
    assert history.evictions == 2


def test_domains_that_make_room_take_what_was_learned_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srrc.control.domains.MOST", 2)
    history = History("profile")
    for axis in AXES[:3]:
        history.place("", axis)
    space = history.space("")
    assert space.learned.keys() == {domain.name for domain in space.domains.known} == {1, 2}
    assert history.evictions == 1


def test_it_is_the_same_after_a_file(tmp_path: Path) -> None:
    history, path = taught(), tmp_path / "history.srr"
    save(history, path)
    again = load(path, "profile")
    assert seen(again) == seen(history)
    vectors: list[Tensor] = [*AXES, torch.nn.functional.normalize(AXES[0] + AXES[1], dim=0)]
    for vector in vectors:
        assert seen_one(again.place("", vector)) == seen_one(history.place("", vector))
    means = [domain.mean for domain in history.space("").domains.known]
    assert all(map(torch.equal, means, (domain.mean for domain in again.space("").domains.known)))


def seen_one(learned: Learned) -> object:
    return learned.beliefs.state(), learned.plans, learned.regulators


def test_files_that_are_no_history_of_this_profile_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.srr"
    assert not load(path, "profile").spaces
    save(taught(), path)
    with pytest.raises(ProfileError, match="another profile"):
        load(path, "other")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ProfileError, match="truncated or damaged"):
        load(path, "profile")
    path.write_bytes(b"not one")
    with pytest.raises(ProfileError, match=r"history\.srr"):
        load(path, "profile")
    path.write_bytes(whole.replace(b'\\"clock\\"', b'\\"clack\\"'))
    with pytest.raises(ProfileError, match="is damaged"):
        load(path, "profile")
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 7'))
    with pytest.raises(ProfileError, match="history format 7"):
        load(path, "profile")
    with pytest.raises(ProfileError, match="cannot write"):
        save(taught(), tmp_path / "no" / "folder")
