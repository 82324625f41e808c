"""The kernel under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels import sparse_linear as module
from srrc.backends.triton.kernels.sparse_linear import Config, reference, sparse_linear

DTYPES = (torch.float32, torch.float16)
CONFIGS = st.sampled_from((Config(16, 32, 1, 1), Config(16, 32, 2, 1), Config(32, 64, 4, 1)))


def by_input(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(inputs, outputs).to(dtype).t()


def masked(rows: int, inputs: int, kept: float, dtype: torch.dtype) -> Tensor:
    x = torch.randn(rows, inputs).to(dtype)
    return torch.where(torch.rand(rows, inputs) < kept, x, torch.zeros((), dtype=dtype))


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 150),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=st.sampled_from(DTYPES),
    config=CONFIGS,
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int,
    inputs: int,
    outputs: int,
    kept: float,
    dtype: torch.dtype,
    config: Config,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, weight = masked(rows, inputs, kept, dtype), by_input(outputs, inputs, dtype)
    added = torch.randn(outputs).to(dtype) if bias else None
    found = sparse_linear(x, weight, bias=added, config=config)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-2}
    torch.testing.assert_close(found, reference(x, weight, bias=added), **tolerance)


@settings(max_examples=15)
@given(rows=st.integers(1, 8), inputs=st.integers(1, 80), outputs=st.integers(1, 90), seed=st.integers(0, 99))
def test_weights_of_eight_bits(rows: int, inputs: int, outputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = masked(rows, inputs, 0.5, torch.float32)
    weight = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8).t()
    scale = torch.rand(outputs)
    found = sparse_linear(x, weight, scale, config=Config(16, 32, 2, 1))
    torch.testing.assert_close(found, reference(x, weight, scale), rtol=1e-5, atol=1e-3)


def test_what_no_row_reads_may_hold_anything() -> None:
    x, weight = masked(3, 40, 1.0, torch.float32), by_input(50, 40, torch.float32)
    x[:, ::2] = 0
    weight[:, ::2] = float("inf")
    assert sparse_linear(x, weight).isfinite().all()


def test_nan_is_read() -> None:
    x, weight = torch.zeros(1, 40), by_input(50, 40, torch.float32)
    x[0, 7] = float("nan")
    assert sparse_linear(x, weight).isnan().all()


def test_a_workspace_serves_one_launch_after_another() -> None:
    x, weight = masked(2, 64, 0.5, torch.float32), by_input(100, 64, torch.float32)
    config = Config(16, 32, 4, 1)
    space = module.workspace(x, 100, config)
    first = sparse_linear(x, weight, config=config, space=space)
    assert not space.arrived.any()
    torch.testing.assert_close(sparse_linear(x, weight, config=config, space=space), first, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [0, 17])
def test_rows_out_of_range(rows: int) -> None:
    with pytest.raises(ValueError, match="1 to 16 rows"):
        sparse_linear(torch.zeros(rows, 8), by_input(8, 8, torch.float32))


def test_a_weight_by_output() -> None:
    with pytest.raises(ValueError, match="weight by input"):
        sparse_linear(torch.zeros(1, 8), torch.zeros(16, 8))
