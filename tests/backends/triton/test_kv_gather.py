"""The kernel under Triton's interpreter against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srrc.backends.triton.kernels.kv_gather import Config, kv_gather, positions, reference

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
