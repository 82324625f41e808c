"""The kernel under Triton's interpreter against the reference."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels.vocab_head import Config, candidate_blocks, reference, vocab_head

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-4}, torch.float16: {"rtol": 2e-3, "atol": 2e-2}}
CONFIGS = st.sampled_from((Config(16, 16, 1), Config(32, 64, 1), Config(16, 128, 1)))


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that nobody wrote holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def blocks_of(vocabulary: int, block: int, kept: float) -> Tensor:
    return torch.rand(-(-vocabulary // block)) < kept


@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 100),
    vocabulary=st.integers(1, 200),
    block=st.sampled_from((32, 64)),
    kept=st.sampled_from((0.0, 0.3, 1.0)),
    dtype=st.sampled_from(tuple(TOLERANCE)),
    coarse=st.sampled_from((None, torch.float32, torch.float16)),
    config=CONFIGS,
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    rows: int,
    inputs: int,
    vocabulary: int,
    block: int,
    kept: float,
    dtype: torch.dtype,
    coarse: torch.dtype | None,
    config: Config,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs + 5).to(dtype)[:, :inputs]
    weight = torch.randn(vocabulary, inputs + 3).to(dtype)[:, :inputs]
    rough = None if coarse is None else torch.randn(rows, vocabulary + 2).to(coarse)[:, :vocabulary]
    added = torch.randn(vocabulary).to(dtype) if bias else None
    candidates = blocks_of(vocabulary, block, kept)
    found = vocab_head(x, weight, candidates, rough, bias=added, block=block, config=config)
    torch.testing.assert_close(
        found, reference(x, weight, candidates, rough, bias=added, block=block), **TOLERANCE[dtype]
    )


@settings(max_examples=30)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 100),
    vocabulary=st.integers(1, 200),
    kept=st.sampled_from((0.0, 0.05, 0.5, 1.0)),
    dtype=st.sampled_from(tuple(TOLERANCE)),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_candidates_of_each_row(
    rows: int, inputs: int, vocabulary: int, kept: float, dtype: torch.dtype, coarse: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(vocabulary, inputs).to(dtype)
    candidates = torch.rand(rows, vocabulary) < kept
    weight[~candidates.any(0)] = float("nan")  # nobody reads it
    rough = torch.randn(rows, vocabulary) if coarse else None
    found = vocab_head(x, weight, candidates, rough, config=Config(16, 32, 1))
    torch.testing.assert_close(found, reference(x, weight, candidates, rough), **TOLERANCE[dtype])


@settings(max_examples=15)
@given(
    rows=st.integers(1, 8), inputs=st.integers(1, 80), vocabulary=st.integers(1, 150), seed=st.integers(0, 99)
)
def test_weights_of_eight_bits(rows: int, inputs: int, vocabulary: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, scale = torch.randn(rows, inputs), torch.rand(vocabulary)
    weight = torch.randint(-127, 128, (vocabulary, inputs), dtype=torch.int8)
    candidates = blocks_of(vocabulary, 32, 0.5).to(torch.int8)
    found = vocab_head(x, weight, candidates, scale=scale, block=32, config=Config(16, 32, 1))
    torch.testing.assert_close(
        found, reference(x, weight, candidates, scale=scale, block=32), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_other_weights_may_hold_anything(rows: int) -> None:
    weight, candidates = torch.randn(200, 40), torch.tensor([True, False, True, False])
    weight[64:128] = float("nan")
    weight[192:] = float("inf")
    assert vocab_head(torch.randn(rows, 40), weight, candidates, torch.zeros(rows, 200)).isfinite().all()


def test_a_candidate_may_be_nan() -> None:
    weight = torch.randn(100, 40)
    weight[70] = float("nan")
    logits = vocab_head(torch.randn(1, 40), weight, torch.tensor([False, True]))
    assert logits.isnan().nonzero().tolist() == [[0, 70]]
    assert logits[0, :64].isneginf().all()


@settings(max_examples=30)
@given(
    rows=st.integers(1, 4),
    vocabulary=st.integers(1, 200),
    best=st.integers(0, 9),
    block=st.sampled_from((16, 64)),
    seed=st.integers(0, 99),
)
def test_candidates_are_the_blocks_of_the_largest(
    rows: int, vocabulary: int, best: int, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    coarse = torch.randn(rows, vocabulary)
    wanted = set()
    for row in coarse:
        largest = sorted((-float(part.max()), i) for i, part in enumerate(row.split(block)))
        wanted |= {i for _, i in largest[:best]}
    assert set(candidate_blocks(coarse, best, block).nonzero().flatten().tolist()) == wanted


def test_a_block_with_nan_is_a_candidate() -> None:
    coarse = torch.randn(1, 100)
    coarse[0, 80] = float("nan")
    assert candidate_blocks(coarse, 1).tolist() == [False, True]


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_out_of_range(rows: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 rows"):
        vocab_head(torch.zeros(rows, 8), torch.zeros(64, 8), torch.ones(1, dtype=torch.bool))


def test_a_weight_by_input() -> None:
    with pytest.raises(ValueError, match="weight by row"):
        vocab_head(torch.zeros(1, 8), torch.zeros(8, 64).t(), torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize(("candidates", "config"), [(2, None), (1, Config(48, 16))])
def test_candidates_that_do_not_fit(candidates: int, config: Config | None) -> None:
    with pytest.raises(ValueError, match="each block of 64 tokens"):
        vocab_head(
            torch.zeros(1, 8), torch.zeros(64, 8), torch.ones(candidates, dtype=torch.bool), config=config
        )


@pytest.mark.parametrize("coarse", [torch.zeros(1, 63), torch.zeros(64, 2).t()])
def test_coarse_logits_that_do_not_fit(coarse: Tensor) -> None:
    with pytest.raises(ValueError, match="coarse logits"):
        vocab_head(torch.zeros(len(coarse), 8), torch.zeros(64, 8), torch.ones(1, dtype=torch.bool), coarse)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.int8, None), (torch.float32, torch.ones(64))])
def test_a_scale_where_none_belongs(dtype: torch.dtype, scale: Tensor | None) -> None:
    with pytest.raises(ValueError, match="a scale with a weight of int8"):
        vocab_head(
            torch.zeros(1, 8), torch.zeros(64, 8, dtype=dtype), torch.ones(1, dtype=torch.bool), scale=scale
        )
