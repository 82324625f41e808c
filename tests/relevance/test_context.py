"""What a text is about."""

import torch

from srrc.control.domains import Domains
from srrc.relevance.context import DIRECTIONS, context_basis, pooled


def kinds(seed: int, pieces: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """An embedding whose tokens share a large mean, and ids [3, pieces, 256] of three kinds of text."""
    draw = torch.Generator().manual_seed(seed)
    embedding = 3.0 + torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    common = torch.randint(0, 60, (3, pieces, 256), generator=draw)
    own = torch.randint(0, 80, (3, pieces, 256), generator=draw) + 60 + 80 * torch.arange(3)[:, None, None]
    return embedding, torch.where(torch.rand(own.shape, generator=draw) < 0.5, common, own)


def test_kinds_of_text_become_domains() -> None:
    embedding, ids = kinds(0)
    basis = context_basis(torch.stack([pooled(embedding, piece) for piece in ids.flatten(0, 1)]))
    assert basis.projection.shape == (DIRECTIONS, 32)
    _, fresh = kinds(1)
    domains = Domains()
    placed = torch.tensor(
        [[domains.place(basis.context(pooled(embedding, piece)))[0].name for piece in kind] for kind in fresh]
    )
    names = placed.unique()
    assert 3 <= len(names) <= 30  # of 120 pieces
    counts = torch.stack([(placed == name).sum(1) for name in names])  # domain by kind
    assert float(counts.max(1).values.sum() / counts.sum()) > 0.95


def test_few_texts_give_few_directions_and_odd_tokens_are_left_out() -> None:
    embedding, ids = kinds(0)
    few = torch.stack([pooled(embedding, piece) for piece in ids[:, 0]])
    assert context_basis(few).projection.shape == (2, 32)
    same = context_basis(torch.ones(4, 8))
    assert bool(same.context(torch.ones(8)).isfinite().all())
    odd = torch.cat((ids[0, 0], torch.tensor([-100, 10**6])))
    assert torch.equal(pooled(embedding, odd), pooled(embedding, ids[0, 0]))
