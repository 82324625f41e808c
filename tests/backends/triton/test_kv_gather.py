"""The kernel under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels.kv_gather import Config, _meet, kv_gather, positions, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float64)


def some(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "head, position") -> Tensor:
    """Random bits, whichever dtype; in a larger tensor whose heads come first, or whose positions do."""
    batch, heads, many, width = shape
    size = torch.empty((), dtype=dtype).element_size()
    first, second = (heads, many) if layout == "head, position" else (many, heads)
    wide = torch.randint(0, 256, (batch, first, second + 1, (width + 3) * size), dtype=torch.uint8).view(
        dtype
    )
    wide = wide[:, :, :second, :width]
    return wide if layout == "head, position" else wide.transpose(1, 2)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 8),
    heads=st.integers(1, 3),
    many=st.integers(1, 40),
    width=st.sampled_from((1, 16, 40, 64)),
    kept=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(("head, position", "position, head"))] * 2),
    config=st.sampled_from((None, Config(1, 1), Config(16, 4))),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    batch: int,
    heads: int,
    many: int,
    width: int,
    kept: float,
    dtype: torch.dtype,
    layouts: tuple[str, str],
    config: Config | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    keys, values = (
        some((batch, heads, many, width), dtype, layouts[0]),
        some((batch, heads, many, width), dtype),
    )
    index, count = positions(torch.rand(batch, heads, many) < kept)
    out = some(keys.shape, dtype), some(keys.shape, dtype, layouts[1])
    truth = out[0].clone(), out[1].clone()
    around = out[1].clone()
    kv_gather(keys, values, index, count, out, config=config)
    reference(keys, values, index, count, truth)
    for found, right in zip(out, truth, strict=True):
        assert torch.equal(bits(found), bits(right))
    if kept == 0:
        assert torch.equal(bits(out[1]), bits(around))


def test_a_capacity_keeps_the_first() -> None:
    keys, values = torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    index, count = positions(torch.ones(2, 2, 30, dtype=torch.bool), 20)
    assert count.tolist() == [[20, 20], [20, 20]]
    found = kv_gather(keys, values, index, count)
    torch.testing.assert_close(found, (keys[:, :, :20], values[:, :, :20]), rtol=0, atol=0)


def test_a_count_past_the_capacity_ends_there() -> None:
    keys, values = torch.randn(1, 2, 30, 8), torch.randn(1, 2, 30, 8)
    index, count = positions(torch.ones(1, 2, 30, dtype=torch.bool))
    found = kv_gather(keys, values, index[:, :, :11], count)
    torch.testing.assert_close(found, (keys[:, :, :11], values[:, :, :11]), rtol=0, atol=0)


def test_heads_may_share_an_index() -> None:
    keys, values = torch.randn(2, 3, 30, 8), torch.randn(2, 3, 30, 8)
    index, count = positions(torch.rand(2, 1, 30) < 0.5)
    index, count = index.expand(2, 3, 30), count.expand(2, 3).contiguous()
    out, truth = (
        (torch.zeros(2, 3, 30, 8), torch.zeros(2, 3, 30, 8)),
        (torch.zeros(2, 3, 30, 8), torch.zeros(2, 3, 30, 8)),
    )
    kv_gather(keys, values, index, count, out)
    reference(keys, values, index, count, truth)
    torch.testing.assert_close(out, truth, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (1, 2, 0, 4)])
def test_nothing_to_move(shape: tuple[int, ...]) -> None:
    keys = torch.zeros(shape)
    index, count = positions(torch.ones(shape[:3], dtype=torch.bool))
    assert kv_gather(keys, keys, index, count)[0].shape == shape


def test_a_mask_without_heads() -> None:
    with pytest.raises(ValueError, match="batch, heads, positions"):
        positions(torch.ones(3, 4, dtype=torch.bool))


def case(**changed: Tensor) -> dict[str, Tensor]:
    tensors = {"keys": torch.zeros(2, 3, 8, 4), "values": torch.zeros(2, 3, 8, 4)}
    tensors |= {
        "index": torch.zeros(2, 3, 5, dtype=torch.int32),
        "count": torch.zeros(2, 3, dtype=torch.int32),
    }
    return tensors | changed


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"keys": torch.zeros(2, 3, 8)}, "batch, heads, positions, width"),
        ({"values": torch.zeros(2, 3, 8, 5)}, "batch, heads, positions, width"),
        ({"values": torch.zeros(2, 3, 9, 4)}, "an index"),
        ({"count": torch.zeros(6, dtype=torch.int32)}, "an index"),
        ({"values": torch.zeros(2, 3, 8, 4, dtype=torch.float16)}, "one dtype"),
        ({name: torch.zeros(2, 3, 8, 4, dtype=torch.complex128) for name in ("keys", "values")}, "one dtype"),
        ({"index": torch.zeros(2, 3, 5, dtype=torch.int64)}, "int32"),
        ({"count": torch.zeros(2, 3, dtype=torch.int64)}, "int32"),
        ({"keys": torch.zeros(2, 3, 4, 8).transpose(2, 3)}, "contiguous"),
        ({"index": torch.zeros(2, 3, 10, dtype=torch.int32)[..., ::2]}, "contiguous"),
        ({"count": torch.zeros(3, 2, dtype=torch.int32).t()}, "contiguous"),
    ],
)
def test_what_does_not_fit(changed: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kv_gather(**case(**changed))


def test_outputs_of_another_capacity() -> None:
    with pytest.raises(ValueError, match="an index"):
        kv_gather(**case(), out=(torch.zeros(2, 3, 6, 4), torch.zeros(2, 3, 6, 4)))


def cut(buffer: Tensor, *at: object) -> Tensor:
    return buffer[at]  # type: ignore[index]


ALL = slice(None)
LOW, HIGH, ACROSS = slice(8), slice(8, 16), slice(4, 12)


@pytest.mark.parametrize(
    ("shape", "source", "target"),
    [
        ((2, 2, 3, 8, 4), (0,), (1,)),  # caches one after another
        ((2, 3, 16, 4), (ALL, ALL, LOW), (ALL, ALL, HIGH)),  # halves of the positions of each head
        ((2, 3, 16, 4), (ALL, ALL, HIGH), (ALL, ALL, LOW)),
        ((2, 6, 8, 4), (ALL, slice(0, 6, 2)), (ALL, slice(1, 6, 2))),  # every other head
        ((2, 3, 8, 16), (ALL, ALL, ALL, LOW), (ALL, ALL, ALL, HIGH)),  # side by side
        ((2, 3, 8, 2, 4), (ALL, ALL, ALL, 0), (ALL, ALL, ALL, 1)),
        ((2, 8, 2, 3, 4), (ALL, ALL, 0), (ALL, ALL, 1)),
    ],
)
def test_disjoint_slices_of_one_buffer(
    shape: tuple[int, ...], source: tuple[object, ...], target: tuple[object, ...]
) -> None:
    buffer = torch.randn(shape)
    keys, out = cut(buffer, *source), cut(buffer, *target)
    if len(shape) == 5 and shape[1] == 8:  # positions before heads
        keys, out = keys.transpose(1, 2), out.transpose(1, 2)
    values = torch.randn(keys.shape)
    index, count = positions(torch.rand(keys.shape[:3]) < 0.5)
    truth = out.clone(), torch.zeros_like(values)
    reference(keys, values, index, count, truth)
    found = kv_gather(keys, values, index, count, (out, torch.zeros_like(values)))
    torch.testing.assert_close(found, truth, rtol=0, atol=0)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("of", ["keys", "values"])
@pytest.mark.parametrize("at", [LOW, ACROSS])
def test_outputs_that_overlap_an_input(position: int, of: str, at: slice) -> None:
    buffer = torch.zeros(2, 3, 16, 4)
    given = case() | {of: buffer[:, :, LOW]}
    out = [torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)]
    out[position] = buffer[:, :, at][:, :, :5]
    with pytest.raises(ValueError, match="share no memory"):
        kv_gather(**given, out=(out[0], out[1]))


def test_a_cache_is_not_compacted_where_it_stands() -> None:
    keys, values = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4)
    index, count = positions(torch.ones(2, 3, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="share no memory"):
        kv_gather(keys, values, index, count, (keys, values))


def test_outputs_that_overlap_each_other() -> None:
    out = torch.zeros(2, 3, 8, 4)
    with pytest.raises(ValueError, match="share no memory"):
        kv_gather(**case(), out=(out[:, :, :5], out[:, :, 3:]))


STRIDED = st.tuples(
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.lists(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 12, 16, 24)), min_size=3, max_size=3),
    st.integers(0, 60),
)


@settings(max_examples=300)
@given(one=STRIDED, other=STRIDED)
def test_what_shares_an_element_is_noticed(
    one: tuple[list[int], list[int], int], other: tuple[list[int], list[int], int]
) -> None:
    buffer = torch.arange(300)
    a, b = buffer.as_strided(*one), buffer.as_strided(*other)
    if {*a.flatten().tolist()} & {*b.flatten().tolist()}:
        assert _meet(a, b)
    assert _meet(a, b) == _meet(b, a)
    assert not _meet(a, b.clone())
