"""The kernel under Triton's interpreter against the reference, and against PyTorch's own attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.block_attention import (
    Config,
    block_attention,
    configs,
    default_config,
    reference,
)
from srrc.backends.triton.kernels.block_mask import Blocks, compact
from srrc.backends.triton.ops.block_attention import block_attention as in_graph
from srrc.backends.triton.shared_memory import LEAST

DTYPES = (torch.float32, torch.float16)
CUTS = st.sampled_from(
    (((16, 16), (16, 16)), ((32, 32), (32, 16)), ((64, 32), (16, 32)), ((16, 64), (16, 16)))
)
"""(the mask's block, a launch's tile)"""


@contextmanager
def poisoned() -> Iterator[None]:
    """What is not written is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def drawn(
    batch: int, heads: int, tokens: int, size: int, dtype: torch.dtype, *, by_token: bool = True
) -> Tensor:
    """[B, H, T, D], laid out [B, T, H, D] as projections leave it, or by head."""
    x = torch.randn(batch, tokens, heads, size).to(dtype).transpose(1, 2)
    return x if by_token else x.contiguous()


def everything(queries: int, keys: int, block: tuple[int, int]) -> Tensor:
    return torch.ones(1, 1, -(-queries // block[0]), -(-keys // block[1]), dtype=torch.bool)


def close(found: Tensor, true: Tensor) -> None:
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if found.dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(found, true, **tolerance)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 80),
    past=st.integers(-10, 70),
    size=st.sampled_from((32, 64)),
    cut=CUTS,
    causal=st.booleans(),
    window=st.none() | st.integers(1, 100),
    seen=st.sampled_from((0.0, 0.3, 0.7, 1.0)),
    shared=st.tuples(st.booleans(), st.booleans()),
    scale=st.none() | st.just(0.3),
    by_token=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    batch: int,
    groups: int,
    group: int,
    queries: int,
    past: int,
    size: int,
    cut: tuple[tuple[int, int], tuple[int, int]],
    causal: bool,
    window: int | None,
    seen: float,
    shared: tuple[bool, bool],
    scale: float | None,
    by_token: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    (block, tile), heads, keys = cut, groups * group, max(1, queries + past)
    q = drawn(batch, heads, queries, size, dtype, by_token=by_token)
    k, v = (drawn(batch, groups, keys, size, dtype, by_token=by_token) for _ in range(2))
    lists = (1 if shared[0] else batch, 1 if shared[1] else heads)
    mask = torch.rand(*lists, *everything(queries, keys, block).shape[2:]) < seen
    with poisoned():
        blocks = compact(mask, queries, keys, block=block, causal=causal, window=window)
        out, lse = block_attention(q, k, v, blocks, scale=scale, config=Config(*tile, 1, 1))
    truth, sums = reference(q, k, v, mask, block=block, causal=causal, window=window, scale=scale)
    close(out, truth)
    torch.testing.assert_close(lse, sums, rtol=1e-4, atol=1e-3)
    assert out.stride() == torch.empty_like(q).stride()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [32, 128, 256])
def test_a_mask_of_everything_is_dense_attention(causal: bool, size: int) -> None:
    torch.manual_seed(0)
    q, k, v = drawn(1, 4, 70, size, torch.float32), *(drawn(1, 2, 70, size, torch.float32) for _ in range(2))
    blocks = compact(everything(70, 70, (64, 64)), 70, 70, block=(64, 64), causal=causal)
    dense = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    close(block_attention(q, k, v, blocks)[0], dense)


def test_a_mask_of_nothing_gives_zeros() -> None:
    q, k, v = (drawn(1, 2, 40, 32, torch.float16) for _ in range(3))
    v[:] = float("nan")
    with poisoned():
        blocks = compact(~everything(40, 40, (16, 16)), 40, 40, block=(16, 16))
        out, lse = block_attention(q, k, v, blocks)
    assert not out.any()
    assert lse.isneginf().all()


def test_blocks_that_are_not_seen_may_hold_anything() -> None:
    q, k, v = (drawn(1, 1, 64, 32, torch.float32) for _ in range(3))
    mask = everything(64, 64, (16, 16))
    mask[..., 1] = False
    blocks = compact(mask, 64, 64, block=(16, 16))
    before, _ = block_attention(q, k, v, blocks)
    k[:, :, 16:32] = v[:, :, 16:32] = float("nan")
    after, _ = block_attention(q, k, v, blocks)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_parts_merge_by_their_sums() -> None:
    torch.manual_seed(0)
    q, k, v = (drawn(2, 2, 64, 32, torch.float32) for _ in range(3))
    one = torch.rand(2, 2, 4, 4) < 0.5
    one[:, :, :, 0] = True
    other = ~one
    other[:, :, 0, 0], one[:, :, 0, 0] = True, False
    parts = [block_attention(q, k, v, compact(m, 64, 64, block=(16, 16), causal=False)) for m in (one, other)]
    share = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    merged = sum(share[i] * out for i, (out, _) in enumerate(parts))
    close(merged, F.scaled_dot_product_attention(q, k, v))  # type: ignore[arg-type]


def test_expanded_and_sliced_inputs() -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 50, 6, 32)
    q, k, v = (part.transpose(1, 2) for part in packed.split((4, 1, 1), 2))
    q = q[:1].expand(2, -1, -1, -1)
    mask = everything(50, 50, (16, 16))
    out, _ = block_attention(q, k, v, compact(mask, 50, 50, block=(16, 16)))
    close(out, reference(q, k, v, mask, block=(16, 16))[0])


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64), (16, 16)])
def test_configs_cut_blocks_into_equal_parts(size: int, block: tuple[int, int]) -> None:
    for config in (
        *configs(block, size, 1 << 18),
        *(default_config(torch.empty(1, 1, 1, size, dtype=d), block) for d in DTYPES),
    ):
        assert block[0] % config.block_m == 0
        assert block[1] % config.block_n == 0


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_configs_fit_a_card(size: int) -> None:
    """An H100, an A100, a card of the least shared memory, and half of what that has."""
    q = torch.empty(1, 1, 1, size, dtype=torch.float16)
    h100, a100, least, little = (
        {*configs((128, 128), size, room)} for room in (232_448, 166_912, LEAST, 50_000)
    )
    assert h100 >= a100 >= least >= little
    assert default_config(q, (128, 128), 232_448) == (
        Config(64, 64, 4, 3) if size <= 128 else Config(64, 32, 4, 3)
    )
    assert default_config(q, (128, 128), 166_912) == default_config(q, (128, 128), 232_448)
    for room, space in ((LEAST, least), (50_000, little)):
        assert default_config(q, (128, 128), room) in space
    assert default_config(q, (128, 128)) == default_config(q, (128, 128), LEAST)  # no card
    large = {Config(128, 128, 8, 3), Config(128, 64, 8, 4), Config(64, 32, 4, 3), Config(128, 64, 8, 2)}
    assert not least & large or size <= 64 or (size == 128 and least & large == {Config(64, 32, 4, 3)})


def made(queries: int = 16, keys: int = 16, lists: tuple[int, int] = (1, 1)) -> Blocks:
    return compact(everything(queries, keys, (16, 16)).expand(*lists, -1, -1), queries, keys, block=(16, 16))


X = torch.zeros(1, 2, 16, 32)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        (X, X, X[:, :1]),
        (X, X.expand(2, -1, -1, -1), X.expand(2, -1, -1, -1)),
        (X[:, :1], X, X),
        (X[..., :16], X[..., :16], X[..., :16]),
        (X, X.mT.contiguous().mT, X),
    ],
)
def test_shapes_and_strides(q: Tensor, k: Tensor, v: Tensor) -> None:
    with pytest.raises(ValueError, match="block_attention takes q"):
        block_attention(q, k, v, made())


@pytest.mark.parametrize(("of_q", "of_v"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_dtypes(of_q: torch.dtype, of_v: torch.dtype) -> None:
    with pytest.raises(ValueError, match="takes one of"):
        block_attention(X.to(of_q), X.to(of_q), X.to(of_v), made())


@pytest.mark.parametrize("blocks", [{"queries": 17}, {"keys": 15}, {"lists": (2, 1)}, {"lists": (1, 3)}])
def test_blocks_of_another_shape(blocks: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="these blocks are for"):
        block_attention(X, X, X, made(**blocks))  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [(32, 16), (16, 32), (64, 64)])
def test_lists_of_another_block(block: tuple[int, int]) -> None:
    lists = compact(everything(40, 40, (16, 16)), 40, 40, block=(16, 16))
    q = X[:, :, :1].expand(-1, -1, 40, -1)
    with pytest.raises(ValueError, match="made with another block"):
        block_attention(q, q, q, replace(lists, block=block))
    with pytest.raises(ValueError, match="made with another block"):
        in_graph(q, q, q, lists.index, lists.counts, *block)


def test_counts_of_another_shape() -> None:
    lists = made(lists=(1, 2))
    for counts in (lists.counts[:, :1], lists.counts[..., :1], lists.counts.flatten(2)[..., None]):
        with pytest.raises(ValueError, match="made with another block"):
            block_attention(X, X, X, replace(lists, counts=counts))


def test_a_tile_that_is_no_part_of_a_block() -> None:
    with pytest.raises(ValueError, match="equal parts"):
        block_attention(X, X, X, made(), config=Config(16, 32, 1, 1))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_above_zero(scale: float) -> None:
    with pytest.raises(ValueError, match="scale above 0"):
        block_attention(X, X, X, made(), scale=scale)
