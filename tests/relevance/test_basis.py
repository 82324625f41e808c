import pytest
import torch

from srrc.relevance.basis import Basis, Moments, head_basis


def made(rows: int = 400, width: int = 12, tokens: int = 90) -> tuple[torch.Tensor, torch.Tensor, Basis]:
    torch.manual_seed(0)
    # A few strong directions that are no channels, far from the origin.
    x = torch.randn(rows, 3) @ torch.randn(3, width) * 4 + 0.3 * torch.randn(rows, width) + 5
    weight = torch.randn(tokens, width)
    moments = Moments(width)
    for part in x.split(64):
        moments.add(part)
    return x, weight, head_basis(moments, weight)


def test_nothing_is_lost_when_all_is_kept() -> None:
    x, weight, basis = made()
    y = (x - basis.mean) @ basis.rotation.t()
    logits = y @ (weight @ basis.inverse).t() + weight @ basis.mean
    torch.testing.assert_close(logits, x @ weight.t(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_leading_directions_are_the_best_of_their_rank(rank: int) -> None:
    """Against the best possible: the singular vectors of the centred logits themselves."""
    x, weight, basis = made()
    centred = (x - x.mean(0)) @ weight.t()
    y = (x - basis.mean) @ basis.rotation.t()
    kept = y[:, :rank] @ (weight @ basis.inverse)[:, :rank].t()
    best = torch.linalg.svdvals(centred)[rank:].pow(2).sum()
    assert (centred - kept).pow(2).sum() <= best * 1.02 + 1e-6


def test_moments_do_not_depend_on_how_rows_come() -> None:
    x = torch.randn(30, 2, 5)
    whole, parts = Moments(5), Moments(5)
    whole.add(x)
    for part in x:
        parts.add(part)
    torch.testing.assert_close(whole.covariance, parts.covariance)
    torch.testing.assert_close(whole.covariance, torch.cov(x.reshape(-1, 5).t().double(), correction=0))
    assert whole.count == 60


def test_fewer_rows_than_channels() -> None:
    moments = Moments(20)
    moments.add(torch.randn(4, 20))
    weight = torch.randn(50, 20)
    basis = head_basis(moments, weight)
    assert all(torch.isfinite(each).all() for each in (basis.rotation, basis.inverse, basis.mean))
    torch.testing.assert_close(basis.inverse @ basis.rotation, torch.eye(20), atol=1e-3, rtol=0)


def test_a_head_whose_inputs_never_change() -> None:
    moments = Moments(6)
    moments.add(torch.ones(10, 6))
    basis = head_basis(moments, torch.randn(30, 6))
    assert torch.isfinite(basis.rotation).all()


def test_half_precision_weights() -> None:
    moments = Moments(6)
    moments.add(torch.randn(50, 6))
    weight = torch.randn(30, 6)
    one, other = head_basis(moments, weight), head_basis(moments, weight.bfloat16().t().contiguous().t())
    assert other.rotation.dtype == torch.float32
    torch.testing.assert_close(one.mean, other.mean)
