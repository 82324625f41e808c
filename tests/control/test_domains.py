"""Domains of text, found online."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from srrc.control.domains import MOST, Domains


def about(centre: Tensor, count: int, seed: int, spread: float = 0.25) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(centre), generator=draw) / len(centre) ** 0.5
    return [normalize(centre + spread * each, dim=0) for each in noise]


def test_three_kinds_of_text_are_three_domains_whatever_their_order() -> None:
    centres = torch.eye(16)[:3]
    contexts = [(kind, each) for kind in range(3) for each in about(centres[kind], 40, kind)]
    order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(0)).tolist()
    domains, found = Domains(), {}
    for index in order:
        kind, context = contexts[index]
        domain, known = domains.place(context)
        assert found.setdefault(domain.name, kind) == kind
        assert known or domain.seen == 1
    assert len(domains.known) == 3
    for domain in domains.known:
        assert float(domain.mean @ centres[found[domain.name]]) > 0.98


def test_their_number_is_bounded_and_the_oldest_makes_room() -> None:
    domains = Domains()
    contexts = torch.eye(MOST + 2)
    for context in contexts[:MOST]:
        domains.place(context)
    domains.place(contexts[0])  # used again: the second is the oldest now
    domains.place(contexts[MOST])
    assert len(domains.known) == MOST
    assert domains.place(contexts[0])[1]
    assert not domains.place(contexts[1])[1]


def test_names_are_never_given_twice() -> None:
    domains = Domains()
    names = [domains.place(context)[0].name for context in torch.eye(2 * MOST)]
    assert len(set(names)) == len(names)


def test_a_context_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Domains().place(torch.tensor([float("nan"), 1.0]))
