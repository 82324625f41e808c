"""What a CUDA graph is told of its inputs, where it may write, and whose its outputs are, without a card."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from srrc.backends import cuda_graphs


def for_a_card(
    monkeypatch: pytest.MonkeyPatch, module: fx.GraphModule, fakes: Sequence[Any], mode: FakeTensorMode
) -> tuple[list[tuple[int, ...]], list[Any], Callable[..., Any]]:
    """Compiled here as for a card: what Inductor was told to stay where it is, its patches, and what runs."""
    static: list[tuple[int, ...]] = []
    patches: list[Any] = []
    compile_fx = cuda_graphs.compile_fx

    def inner(gm: fx.GraphModule, examples: Any, **options: Any) -> Any:
        static.append(tuple(options["static_input_idxs"]))
        pool: list[Any] = []

        def replay(*args: Any) -> Any:
            """As a CUDA graph does, it answers in the same memory each time."""
            for at, found in enumerate(gm(*args)):
                if at == len(pool):
                    pool.append(found)
                pool[at].copy_(found)
            return pool

        return replay

    def told(module: fx.GraphModule, values: list[Any], config_patches: Any, **options: Any) -> Any:
        patches.append(config_patches)
        return compile_fx(module, values, **options or {"inner_compile": inner})

    monkeypatch.setattr(cuda_graphs, "compile_fx", told)
    monkeypatch.setattr(cuda_graphs, "compile_fx_inner", inner)
    return static, patches, cuda_graphs.compile_on_card(module, fakes, mode, cuda_graphs=True)


def fake_mode() -> FakeTensorMode:
    return FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv())


def test_for_a_card_inductor_is_told_what_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph may hold by its address: parameters, what the graph holds itself, and what it writes to."""

    def step(weight: Tensor, x: Tensor, counter: Tensor, cache: Tensor) -> tuple[Tensor]:
        counter.add_(1)
        cache.add_(x)
        return (weight + x,)

    module = fx.symbolic_trace(step)
    weight, _, counter, _ = module.graph.find_nodes(op="placeholder")
    for node in (weight, counter):
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(3), static_shapes=True) for _ in range(4)]
    static, patches, _ = for_a_card(monkeypatch, module, fakes, mode)
    assert static == [(0, 2, 3)]
    assert patches == [{"triton.cudagraphs": True}]


def test_on_a_card_a_size_that_changes_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each token over a cache that grows would be recorded anew."""
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(5, 3), static_shapes=False)]
    _, patches, _ = for_a_card(monkeypatch, fx.symbolic_trace(lambda x: (x + 1,)), fakes, mode)
    assert patches == [{}]


def test_outputs_of_a_cuda_graph_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next replay writes over what the graph holds; an input that is returned stays the input."""
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(3), static_shapes=True)]
    module = fx.symbolic_trace(lambda x: (x * 2, x.add_(1), x.view(1, 3)))
    *_, run = for_a_card(monkeypatch, module, fakes, mode)
    x = torch.zeros(3)
    first, same, view = run(x)
    second, *_ = run(x)
    assert (first.tolist(), second.tolist()) == ([0.0] * 3, [2.0] * 3)
    assert x.tolist() == [2.0] * 3
    assert same.data_ptr() == view.data_ptr() == x.data_ptr()


def test_a_cache_elsewhere_is_recorded_anew_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """And from then on, or where it is not aligned as kernels were made for, copied: memory does not grow."""

    def step(cache: Tensor) -> tuple[Tensor]:
        cache.add_(1)
        return (cache * 2,)

    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(4), static_shapes=True)]
    seen: list[int] = []

    def watched(gm: fx.GraphModule, examples: Any, **options: Any) -> Any:
        def replay(cache: Tensor) -> Any:
            seen.append(cache.data_ptr())
            return list(gm(cache))

        return replay

    compile_fx = cuda_graphs.compile_fx
    monkeypatch.setattr(cuda_graphs, "compile_fx_inner", watched)

    def without_patches(*args: Any, config_patches: Any, **options: Any) -> Any:
        return compile_fx(*args, **options)

    monkeypatch.setattr(cuda_graphs, "compile_fx", without_patches)
    run = cuda_graphs.compile_on_card(fx.symbolic_trace(step), fakes, mode, cuda_graphs=True)
    held = torch.zeros(5)
    odd = held[1:]
    for time in range(3):
        assert run(odd)[0].tolist() == [2.0 * (time + 1)] * 4
    assert held.tolist() == [0.0, 3.0, 3.0, 3.0, 3.0]
    assert odd.data_ptr() not in seen
    caches = [torch.zeros(4) for _ in range(40)]
    for cache in caches * 2:
        run(cache)
    assert all(cache.tolist() == [2.0] * 4 for cache in caches)
    assert len({*seen}) == cuda_graphs.PLACES + 1


def test_what_returns_an_input_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be given another tensor in its stead."""
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(3), static_shapes=True)]
    static, *_ = for_a_card(monkeypatch, fx.symbolic_trace(lambda x: (x.add_(1),)), fakes, mode)
    assert static == [()]
