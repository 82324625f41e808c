"""Regions that are called without AOTAutograd's wrapper give what the graph gives, and write to inputs as it does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from srrc.backends import inductor


def compiled(function: Callable[..., Any], *inputs: Tensor) -> tuple[Callable[..., Any], bool]:
    """`function` as a region, and whether it goes without the wrapper."""
    fake_mode = torch._subclasses.FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv())
    with fake_mode:
        fakes = [fake_mode.from_tensor(each, static_shapes=True) for each in inputs]
    run = inductor.compile_region(fx.symbolic_trace(function), fakes, fake_mode)
    return run, run.__module__ == inductor.__name__


def test_a_plain_region_goes_without() -> None:
    x = torch.randn(4, 8)
    run, bare = compiled(lambda a, b: (torch.relu(a) + b, a * b), x, x)
    assert bare
    y = torch.randn(4, 8)
    for got, expected in zip(run(x, y), (torch.relu(x) + y, x * y), strict=True):
        torch.testing.assert_close(got, expected)


def test_what_is_written_to_is_written_and_its_version_counted() -> None:
    cache, position, value = torch.zeros(6, 4), torch.tensor([2]), torch.randn(1, 4)

    def update(c: Tensor, p: Tensor, v: Tensor) -> tuple[Tensor]:
        c.index_copy_(0, p, v)
        return (c.sum(0),)

    run, bare = compiled(update, cache, position, value)
    assert bare
    before = cache._version
    with torch.no_grad():
        (total,) = run(cache, position, value)
    torch.testing.assert_close(cache[2:3], value)
    torch.testing.assert_close(total, value[0])
    assert cache._version > before


@pytest.mark.parametrize(
    ("function", "goes_without"),
    [
        (lambda a: (a.view(8, 4), a + 1), False),
        (lambda a: (a, a * 2), False),
        (lambda a: ((b := a + 1), b.view(-1)), True),  # Inductor makes that view itself
    ],
    ids=["a view of an input", "an input", "a view of another output"],
)
def test_aliases_stay_aliases(function: Callable[..., Any], goes_without: bool) -> None:
    x = torch.randn(4, 8)
    run, bare = compiled(function, x)
    assert bare is goes_without
    results, expected = run(x), function(x)
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    places = [t.data_ptr() for t in (x, *results)]
    wanted = [t.data_ptr() for t in (x, *expected)]
    assert [p == places[0] for p in places] == [p == wanted[0] for p in wanted]
    assert (places[1] == places[2]) == (wanted[1] == wanted[2])


def test_autocast_keeps_the_wrapper() -> None:
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        run, bare = compiled(lambda a, b: (a @ b,), x, w)
        assert not bare
        (got,) = run(x, w)
        assert got.dtype == torch.bfloat16
