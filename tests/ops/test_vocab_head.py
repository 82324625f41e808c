"""srr::vocab_head: the reference against plain PyTorch, and the kernels against the reference.

Weights and inputs are small whole numbers, so that every sum is exact in float32: which tokens are best, and
every logit, must then agree to the bit whatever the order of summation.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from srrc.ops import vocab_head
from srrc.ops.vocab_head import SCALE_BLOCK

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    rotation: Tensor
    mean: Tensor
    coarse: Tensor
    coarse_scale: Tensor | None
    coarse_bias: Tensor
    norm: Tensor
    gate: Tensor
    exact: int

    def run(self, op=torch.ops.srr.vocab_head) -> tuple[Tensor, list[int]]:
        counters = torch.zeros(4, dtype=torch.int64)
        tensors = (self.x, self.weight, self.bias, self.rotation, self.mean, self.coarse, self.coarse_scale)
        out = op(*tensors, self.coarse_bias, self.norm, self.gate, counters, self.exact)
        return out, counters.tolist()


def whole_numbers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape).float()


def make(
    *,
    rows: int = 1,
    hidden: int = 24,
    vocab: int = 100,
    dtype: torch.dtype = torch.float32,
    int8: bool = True,
    bias: bool = False,
    threshold: float = 4.0,
    min_kept: float = 0.0,
    exact: int = 7,
    seed: int = 0,
) -> Case:
    torch.manual_seed(seed)
    coarse = whole_numbers(-3, 3, hidden, vocab).t()
    scale = None
    if int8:
        scale = 2.0 ** whole_numbers(-1, 1, -(-vocab // SCALE_BLOCK), hidden)
        coarse = coarse.to(torch.int8)
    else:
        coarse = coarse.to(dtype)
    return Case(
        x=whole_numbers(-2, 2, rows, hidden).to(dtype),
        weight=whole_numbers(-2, 2, vocab, hidden).to(dtype),
        bias=whole_numbers(-2, 2, vocab).to(dtype) if bias else None,
        rotation=whole_numbers(-1, 1, hidden, hidden),
        mean=whole_numbers(-1, 1, hidden),
        coarse=coarse,
        coarse_scale=scale,
        coarse_bias=whole_numbers(-4, 4, vocab),
        norm=2.0 ** whole_numbers(-1, 1, hidden),
        gate=torch.tensor([threshold, min_kept]),
        exact=exact,
    )


def test_reference_written_out():
    case = make(rows=3, min_kept=0.1)
    out, counters = case.run(vocab_head.reference)
    y = (case.x - case.mean) @ case.rotation.t()
    keep = (y.abs() * case.norm > 4.0).any(0)
    wide = case.coarse.float() * case.coarse_scale[0]
    rough = (y * keep) @ wide.t() + case.coarse_bias
    dense = case.x @ case.weight.t()
    for row in range(3):
        last = rough[row].sort(descending=True).values[case.exact - 1]
        for token in range(100):
            expected = dense if rough[row, token] >= last else rough
            assert out[row, token] == expected[row, token]
    assert 0 < int(keep.sum()) < 24
    assert not torch.equal(out, dense)
    assert counters == [72, 3 * int(keep.sum()), 0, 3]


@pytest.mark.parametrize("rows", [1, 8, 11])
@pytest.mark.parametrize("gate", [(-1.0, 0.0), (4.0, 1.0), (float("nan"), 0.0)])
def test_all_exact_where_the_gate_is_open_or_not_trusted(rows, gate):
    case = make(rows=rows, bias=True, threshold=gate[0], min_kept=gate[1])
    out, counters = case.run(vocab_head.reference)
    assert torch.equal(out, F.linear(case.x, case.weight, case.bias))
    failed = 0 if gate[1] == 0.0 else rows
    assert counters == [rows * 24, rows * 24, failed, 0]


@pytest.mark.parametrize("rows", [2, 9])
def test_a_nan_among_the_coarse_logits_makes_it_exact(rows):
    case = make(rows=rows, threshold=4.0)
    case.coarse_bias[5] = float("nan")
    out, counters = case.run(vocab_head.reference)
    assert torch.equal(out, F.linear(case.x, case.weight))
    assert counters[1:] == [rows * 24, rows, 0]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.sampled_from([1, 1, 2, 3, 5, 8, 9, 13]),
    hidden=st.sampled_from([1, 8, 24, 33, 64]),
    vocab=st.sampled_from([3, 31, 100, 333, 5000, 9001]),
    dtype=st.sampled_from(DTYPES),
    int8=st.booleans(),
    bias=st.booleans(),
    threshold=st.sampled_from([-1.0, 0.0, 1.0, 4.0, 8.0, 1e9]),
    min_kept=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    exact=st.sampled_from([1, 7, 200, 10000]),
    seed=st.integers(0, 9),
)
def test_kernels_equal_the_reference(kernels, **given_):
    case = make(**given_)
    out, counters = case.run()
    expected, expected_counters = case.run(vocab_head.reference)
    assert out.dtype == case.x.dtype
    assert torch.equal(out, expected)
    assert counters == expected_counters


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_that_are_not_the_fast_ones(kernels, dtype):
    case = make(rows=2, vocab=300, dtype=dtype, bias=True)
    expected, counters = case.run(vocab_head.reference)
    by_rows = replace(case, coarse=case.coarse.contiguous())
    by_columns = replace(case, weight=case.weight.t().contiguous().t())
    turned = replace(
        case, x=torch.stack((case.x, case.x), -1)[..., 0], rotation=case.rotation.t().contiguous().t()
    )
    for other in (by_rows, by_columns, turned):
        out, found = other.run()
        assert torch.equal(out, expected)
        assert found == counters


def test_values_that_are_not_finite(kernels):
    for value in (float("nan"), float("inf"), float("-inf")):
        for place in ("x", "coarse_bias", "weight"):
            case = make(rows=2, vocab=300)
            getattr(case, place).view(-1)[7] = value
            expected, counters = case.run(vocab_head.reference)
            out, found = case.run()
            assert torch.equal(out.nan_to_num(nan=1e30), expected.nan_to_num(nan=1e30))
            assert found == counters


def test_ties_are_exact_too(kernels):
    case = make(vocab=5000, threshold=1e9, exact=3)
    case.coarse_bias.fill_(1.0)
    out, counters = case.run()
    assert torch.equal(out, F.linear(case.x, case.weight))
    assert counters == [24, 0, 0, 1]


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("int8", [True, False])
def test_gradients_as_if_the_choice_were_constant(rows, int8):
    case = make(rows=rows, bias=True, int8=int8, threshold=4.0)
    names = ["x", "weight", "bias", "rotation", "mean", "coarse_bias"] + ([] if int8 else ["coarse"])
    leaves = {name: getattr(case, name).double().float().clone().requires_grad_() for name in names}
    weights = torch.randn(rows, 100)
    out, counters = replace(case, **leaves).run()
    (out * weights).sum().backward()
    assert counters[0] == rows * 24
    choice = vocab_head.choose(
        vocab_head.rotate(case.x, case.rotation, case.mean), case.coarse, case.coarse_scale, case.coarse_bias,
        case.norm, case.gate, case.exact,
    )  # fmt: skip
    free = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    made = replace(case, **free)
    y = (made.x - made.mean) @ made.rotation.t() * choice.decision.keep
    wide = made.coarse.float() if case.coarse_scale is None else made.coarse.float() * case.coarse_scale[0]
    rough = y @ wide.t() + made.coarse_bias
    again = torch.where(choice.exact, F.linear(made.x, made.weight, made.bias), rough)
    (again * weights).sum().backward()
    for name in names:
        torch.testing.assert_close(leaves[name].grad, free[name].grad)


@pytest.mark.parametrize("int8", [True, False])
def test_opcheck(int8):
    case = make(rows=2, int8=int8, bias=True)
    tensors = (case.x, case.weight, case.bias, case.rotation, case.mean, case.coarse, case.coarse_scale)
    arguments = (
        *tensors,
        case.coarse_bias,
        case.norm,
        case.gate,
        torch.zeros(4, dtype=torch.int64),
        case.exact,
    )
    torch.library.opcheck(torch.ops.srr.vocab_head.default, arguments)
