"""The kernel under Triton's interpreter against the reference."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from srrc.backends.triton.kernels.grouped_linear import (
    Config,
    configs,
    default_config,
    grouped_linear,
    reference,
    route,
    tiles,
)
from srrc.backends.triton.ops.grouped_linear import grouped_linear as operator

CONFIGS = (Config(16, 32, 32, 1, 1), Config(16, 16, 16, 1, 1, 1), Config(32, 32, 16, 1, 1, 3))
LAYOUTS = ("by output", "by input", "experts inside", "larger")
ROUTINGS = (
    "random",
    "one expert",
    "two experts",
    "some dropped",
    "some dropped first",
    "all dropped",
    "all dropped first",
)


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """What is allocated and not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def weight_of(experts: int, outputs: int, inputs: int, dtype: torch.dtype, layout: str) -> Tensor:
    if layout == "by input":
        return torch.randn(experts, inputs, outputs).to(dtype).transpose(1, 2)
    if layout == "experts inside":
        return torch.randn(outputs, experts, inputs).to(dtype).transpose(0, 1)
    if layout == "larger":
        return torch.randn(experts, outputs + 1, inputs + 3).to(dtype)[:, :outputs, :inputs]
    return torch.randn(experts, outputs, inputs).to(dtype)


def eight_bits(experts: int, outputs: int, inputs: int, layout: str) -> tuple[Tensor, Tensor]:
    weight = weight_of(experts, outputs, inputs, torch.float32, layout).mul(50).clamp(-127, 127)
    return weight.to(torch.int8), torch.rand(experts, outputs) / 50


def choice(tokens: int, top_k: int, experts: int, routing: str) -> Tensor:
    if routing == "one expert":
        return torch.full((tokens, top_k), experts // 2)
    if routing == "two experts":
        return torch.randint(0, 2, (tokens, top_k)) * (experts - 1)
    if routing == "all dropped":
        return torch.full((tokens, top_k), experts)
    if routing == "all dropped first":
        return torch.full((tokens, top_k), -1)
    first, past = -(routing == "some dropped first"), experts + (routing != "random")
    return torch.randint(first, past, (tokens, top_k))


@settings(max_examples=50)
@given(
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 2),
    experts=st.sampled_from((1, 2, 3, 8, 20)),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 80),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    layout=st.sampled_from(LAYOUTS),
    routing=st.sampled_from(ROUTINGS),
    weighted=st.booleans(),
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    tokens: int,
    top_k: int,
    experts: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    layout: str,
    routing: str,
    weighted: bool,
    config: Config,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(tokens, inputs + 2).to(dtype)[:, :inputs]
    weight = weight_of(experts, outputs, inputs, dtype, layout)
    way = route(choice(tokens, top_k, experts, routing), experts)
    given_weight = torch.rand(tokens * top_k) if weighted else None
    found = grouped_linear(x, weight, way.order, way.offsets, given_weight, config=config)
    truth = reference(x, weight, way.order, way.offsets, given_weight)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-2}
    torch.testing.assert_close(found, truth, **tolerance)


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 30),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 80),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    layout=st.sampled_from(LAYOUTS),
    routing=st.sampled_from(ROUTINGS),
    weighted=st.booleans(),
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 99),
)
def test_weights_of_eight_bits(
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    layout: str,
    routing: str,
    weighted: bool,
    config: Config,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(tokens, inputs).to(dtype)
    weight, scale = eight_bits(5, outputs, inputs, layout)
    way = route(choice(tokens, 2, 5, routing), 5)
    given_weight = torch.rand(tokens * 2) if weighted else None
    found = grouped_linear(x, weight, way.order, way.offsets, given_weight, scale, config=config)
    truth = reference(x, weight, way.order, way.offsets, given_weight, scale)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-2}
    torch.testing.assert_close(found, truth, **tolerance)


def test_the_operator_takes_eight_bits() -> None:
    torch.manual_seed(0)
    weight, scale = eight_bits(3, 20, 16, "by output")
    way = route(torch.randint(0, 4, (6, 2)), 3)
    given = torch.randn(6, 16), weight, way.order, way.offsets, None, scale
    torch.testing.assert_close(operator(*given), reference(*given), rtol=1e-5, atol=1e-4)
    opcheck(operator, given, test_utils=("test_schema", "test_autograd_registration"))


@settings(max_examples=10)
@given(pairs=st.integers(1, 60), seed=st.integers(0, 99))
def test_rows_in_the_pairs_order(pairs: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(pairs, 20), torch.randn(4, 30, 20)
    offsets = route(torch.randint(0, 4, (pairs, 1)), 4).offsets
    found = grouped_linear(x, weight, None, offsets, config=CONFIGS[0])
    torch.testing.assert_close(found, reference(x, weight, None, offsets), rtol=1e-5, atol=1e-4)


@settings(max_examples=20)
@given(
    tokens=st.integers(1, 40),
    bounds=st.sampled_from(((0, 3), (3, 6), (2, 3), (5, 8))),
    with_order=st.booleans(),
    weighted=st.booleans(),
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 99),
)
def test_a_shard_of_the_experts(
    tokens: int, bounds: tuple[int, int], with_order: bool, weighted: bool, config: Config, seed: int
) -> None:
    """Pairs before its first expert and after its last are zeros, and shards add up."""
    torch.manual_seed(seed)
    x, weight = torch.randn(tokens, 20), torch.randn(8, 30, 20)
    way = route(torch.randint(-1, 9, (tokens, 2)), 8)
    rows, order = (x, way.order) if with_order else (x[way.order.long()], None)
    given_weight = torch.rand(tokens * 2) if weighted else None

    def part(first: int, past: int) -> Tensor:
        given = rows, weight[first:past], order, way.offsets[first : past + 1], given_weight
        found = grouped_linear(*given, config=config)
        torch.testing.assert_close(found, reference(*given), rtol=1e-5, atol=1e-4)
        outside = torch.ones(len(found), dtype=torch.bool)
        outside[way.offsets[first] : way.offsets[past]] = False
        assert not found[outside].any()
        return found

    first, past = bounds
    whole = grouped_linear(rows, weight, order, way.offsets, given_weight, config=config)
    edges = sorted({0, first, past, 8})
    summed = sum(part(*edge) for edge in itertools.pairwise(edges))
    torch.testing.assert_close(summed, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("experts", [255, 256])
def test_as_many_experts_as_there_may_be(experts: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 16), torch.randn(experts, 20, 16)
    way = route(torch.tensor([[0, 7], [experts - 1, -1], [128, experts]]), experts)
    found = grouped_linear(x, weight, way.order, way.offsets, config=CONFIGS[1])
    torch.testing.assert_close(found, reference(x, weight, way.order, way.offsets), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 80])
def test_the_default(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, 130).to(dtype), torch.randn(3, 70, 130).to(dtype)
    way = route(torch.randint(0, 3, (tokens, 2)), 3)
    found = grouped_linear(x, weight, way.order, way.offsets)
    torch.testing.assert_close(found, reference(x, weight, way.order, way.offsets), rtol=2e-3, atol=2e-2)


def test_a_whole_block_of_experts() -> None:
    """Route, up, down, weigh and sum: what a layer does."""
    torch.manual_seed(0)
    x, up, down = torch.randn(9, 12), torch.randn(5, 20, 12), torch.randn(5, 12, 20)
    weight, expert = torch.rand(9, 5).topk(2)
    way = route(expert, 5)
    inner = grouped_linear(x, up, way.order, way.offsets, config=CONFIGS[0])
    outer = grouped_linear(inner, down, None, way.offsets, weight.flatten()[way.pair], config=CONFIGS[0])
    found = torch.empty_like(outer).index_copy(0, way.pair, outer).view(9, 2, 12).sum(1)
    truth = torch.stack([sum(w * (down[e] @ (up[e] @ row)) for w, e in zip(*at, strict=True))
                         for row, *at in zip(x, weight, expert, strict=True)])  # fmt: skip
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-3)


def test_a_dropped_pair_is_no_nan() -> None:
    x, weight = torch.full((2, 8), float("inf")), torch.full((2, 8, 8), float("nan"))
    way = route(torch.tensor([[2], [-1]]), 2)
    assert not grouped_linear(x, weight, way.order, way.offsets, torch.full((2,), 0.5)).any()
    weight, scale = weight.zero_().to(torch.int8), torch.full((2, 8), float("nan"))
    assert not grouped_linear(x, weight, way.order, way.offsets, None, scale).any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_route(dtype: torch.dtype) -> None:
    way = route(torch.tensor([[3, 0], [0, 4], [3, 3]], dtype=dtype), 4)
    assert way.pair.tolist() == [1, 2, 0, 4, 5, 3]
    assert way.order.tolist() == [0, 1, 0, 2, 2, 1]
    assert way.offsets.tolist() == [0, 2, 2, 2, 5]
    assert way.order.dtype == way.offsets.dtype == torch.int32
    assert route(torch.tensor([[3, -1], [4, 0]], dtype=dtype), 4).offsets.tolist() == [1, 2, 2, 2, 3]


@pytest.mark.parametrize("block_m", [1, 2, 4])
@pytest.mark.parametrize("experts", [1, 2, 3])
@pytest.mark.parametrize("pairs", range(8))
def test_tiles_are_as_many_as_the_worst_routing_needs(pairs: int, experts: int, block_m: int) -> None:
    splits = itertools.product(range(pairs + 1), repeat=experts + 1)
    needed = [sum(-(-size // block_m) for size in split) for split in splits if sum(split) == pairs]
    assert tiles(pairs, experts, block_m) == max(needed)


def test_no_pairs() -> None:
    way = route(torch.empty(0, 2, dtype=torch.int64), 3)
    assert grouped_linear(torch.zeros(0, 8), torch.zeros(3, 5, 8), way.order, way.offsets).shape == (0, 5)


def test_the_default_is_in_the_space() -> None:
    for pairs in (2, 16, 400, 4096):
        assert default_config(pairs, 8, torch.bfloat16) in configs(pairs, 8)


def case(**changed: Tensor) -> dict[str, Tensor]:
    tensors = {
        "x": torch.zeros(4, 8),
        "weight": torch.zeros(3, 5, 8),
        "order": torch.zeros(6, dtype=torch.int32),
    }
    return tensors | {"offsets": torch.zeros(4, dtype=torch.int32), "pair_weight": torch.zeros(6)} | changed


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"x": torch.zeros(8)}, "outputs, inputs"),
        ({"weight": torch.zeros(5, 8)}, "outputs, inputs"),
        ({"weight": torch.zeros(3, 5, 9)}, "outputs, inputs"),
        ({"weight": torch.zeros(257, 5, 8), "offsets": torch.zeros(258, dtype=torch.int32)}, "1 to 256"),
        ({"x": torch.zeros(4, 8, dtype=torch.float64)}, "fp16, bf16 or fp32"),
        ({"weight": torch.zeros(3, 5, 8, dtype=torch.float16)}, "the same twice"),
        ({"x": torch.zeros(4, 8, dtype=torch.int8)}, "fp16, bf16 or fp32"),
        ({"weight": torch.zeros(3, 5, 8, dtype=torch.int8)}, "a scale with a weight of int8"),
        ({"scale": torch.zeros(3, 5)}, "a scale with a weight of int8"),
        ({"x": torch.zeros(8, 4).t()}, "contiguous rows"),
        ({"weight": torch.zeros(3, 10, 16)[:, ::2, ::2]}, "contiguous rows"),
        ({"order": torch.zeros(6, dtype=torch.int64)}, "order"),
        ({"order": torch.zeros(12, dtype=torch.int32)[::2]}, "order"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, "offsets"),
        ({"pair_weight": torch.zeros(5)}, "pair_weight"),
        ({"pair_weight": torch.zeros(6, dtype=torch.float16)}, "pair_weight"),
    ],
)
def test_what_does_not_fit(changed: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        grouped_linear(**case(**changed))


@pytest.mark.parametrize(
    "scale",
    [torch.zeros(3), torch.zeros(5, 3), torch.zeros(3, 5, dtype=torch.float16), torch.zeros(5, 3).t()],
)
def test_a_scale_that_does_not_fit(scale: Tensor) -> None:
    with pytest.raises(ValueError, match=r"scale \[3, 5\] of torch.float32"):
        grouped_linear(**case(weight=torch.zeros(3, 5, 8, dtype=torch.int8), scale=scale))
