"""Texts that pass through a model, and the domains that they are found to be of."""

import torch
from torch import Tensor

from srrc.control.history import History
from srrc.control.plan import Plan
from srrc.relevance.context import ContextBasis
from srrc.runtime.stream import FEW, FOUND, PIECE, Stream, told

TABLE = torch.eye(6)
BASIS = ContextBasis(torch.full((6,), 1 / 6), torch.eye(6))


def text(token: int, count: int) -> Tensor:
    return torch.full((1, count), token)


def stream(basis: ContextBasis | None = BASIS) -> Stream:
    return Stream(History("profile"), basis, "")


def test_a_request_is_of_the_domain_of_its_tokens() -> None:
    held = stream()
    assert held.saw(text(0, FOUND), TABLE)
    first = held.learned
    first.plan("key", Plan)
    held.saw(text(1, FOUND), TABLE)
    assert held.learned is not first
    held.saw(text(0, FOUND), TABLE)
    assert held.learned is first
    assert told([held]) == {
        "context": "",
        "domains": 2,
        "hits": 1,
        "misses": 2,
        "hit_rate": 1 / 3,
        "evictions": 0,
        "seconds_saved": first.seconds,
    }


def test_short_texts_are_looked_up_once_there_is_enough_of_them() -> None:
    held = stream()
    rest = held.learned
    looked = [held.saw(text(2, 1), TABLE) for _ in range(PIECE + 1)]
    assert [at + 1 for at, each in enumerate(looked) if each] == [FEW, 2 * FEW, FOUND, PIECE]
    assert held.learned is not rest
    assert len(held.history.space("").domains.known) == 1
    held.learned.plan("key", Plan)
    held.saw(text(2, FEW), TABLE)  # a domain that is there is joined early
    assert held.history.hits == 1
    held.saw(text(3, FEW), TABLE)
    assert held.learned is held.history.space("").rest
    assert held.history.hits + held.history.misses == 2


def test_a_long_answer_may_change_its_subject() -> None:
    held = stream()
    held.saw(text(0, PIECE), TABLE)
    first = held.learned
    for _ in range(PIECE):
        held.saw(text(1, 1), TABLE)
    assert held.learned is not first


def test_another_context_begins_anew_and_the_first_one_is_found_again() -> None:
    held = stream()
    held.saw(text(0, FOUND), TABLE)
    first = held.learned
    held.enter("legal")
    assert held.learned is held.history.space("legal").rest
    held.saw(text(0, FOUND), TABLE)
    assert held.learned not in (first, held.history.space("legal").rest)
    held.enter("")
    held.saw(text(0, FOUND), TABLE)
    assert held.learned is first


def test_without_a_basis_or_with_other_tokens_nothing_is_looked_up() -> None:
    blind = stream(None)
    assert not blind.saw(text(0, PIECE), TABLE)
    held = stream()
    assert not held.saw(text(0, PIECE), torch.eye(5))
    assert not held.saw(torch.tensor(3), TABLE)
    assert held.saw(text(-1, PIECE), TABLE)  # padding alone says nothing
    assert held.learned is held.history.space("").rest
    assert told([])["context"] is None


def test_tokens_of_a_batch_count_together() -> None:
    held = stream()
    assert held.saw(torch.zeros(4, FEW, dtype=torch.long), TABLE)
    assert len(held.history.space("").domains.known) == 1
