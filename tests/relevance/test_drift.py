import pytest
import torch

from srrc.relevance.drift import Drift, Reference, measure


def exact(dense: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
    one, other = dense.double().log_softmax(-1), routed.double().log_softmax(-1)
    return (one.exp() * (one - other)).sum(-1)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 30.0])
def test_kl_is_exact_whatever_its_size(size: float) -> None:
    torch.manual_seed(0)
    dense = 3 * torch.randn(2, 70, 500)
    routed = dense + size * torch.randn_like(dense)
    found = measure(dense, routed, "logits")
    assert found.count == 140
    assert found.mean == pytest.approx(exact(dense, routed).mean().item(), rel=1e-3)


def test_equal_up_to_a_constant_is_no_drift() -> None:
    dense = torch.randn(5, 9)
    assert measure(dense, dense + 3, "logits").mean < 1e-7


def test_differences_too_large_for_exp() -> None:
    dense, routed = torch.tensor([[0.0, 1.0]]), torch.tensor([[500.0, 0.0]])
    assert measure(dense, routed, "logits").mean == pytest.approx(exact(dense, routed).item(), rel=1e-5)


def test_tokens_masked_in_both_count_nothing() -> None:
    dense = torch.tensor([[0.0, 1.0, float("-inf")]])
    routed = torch.tensor([[0.5, 1.0, float("-inf")]])
    assert measure(dense, routed, "logits").mean == pytest.approx(
        exact(dense[:, :2], routed[:, :2]).item(), rel=1e-4
    )


@pytest.mark.parametrize("how", ["logits", "values"])
def test_nan_is_infinitely_far(how: str) -> None:
    routed = torch.randn(4, 9)
    routed[2, 3] = float("nan")
    assert measure(torch.randn(4, 9), routed, how).mean == float("inf")  # type: ignore[arg-type]


def test_values_are_measured_against_their_own_variance() -> None:
    torch.manual_seed(0)
    dense, noise = 5 * torch.randn(50, 200), torch.randn(50, 200)
    assert measure(dense, dense + noise, "values").mean == pytest.approx(0.5 / 25, rel=0.05)


def test_one_reference_serves_several_and_bf16() -> None:
    dense = torch.randn(3, 8, dtype=torch.bfloat16)
    reference = Reference(dense, "logits")
    assert reference.drift(dense).mean < 1e-9
    assert reference.drift(dense + 1 * (torch.arange(8) == 0)).mean > 0.01


def test_adding_up() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, 3.0], dtype=torch.float64)
    parts = [Drift(float(p.sum()), float((p**2).sum()), len(p)) for p in (values[:2], values[2:])]
    whole = parts[0] + parts[1]
    assert whole.mean == pytest.approx(values.mean().item())
    assert whole.error == pytest.approx((values.std() / 5**0.5).item())
    assert (Drift().mean, Drift().error) == (0.0, 0.0)
