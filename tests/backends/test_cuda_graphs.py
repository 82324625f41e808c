"""What a CUDA graph is told of its inputs, where it may write, and whose its outputs are, without a card."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

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


def replayed(
    monkeypatch: pytest.MonkeyPatch, step: Callable[..., Any], *sizes: int, static: Sequence[int] = ()
) -> tuple[list[tuple[int, ...]], list[Callable[[], None]], Callable[..., Any]]:
    """`step` over zeros of these sizes as compiled for a card, where its caller marked some as static.

    Returns where inputs lay at each replay, what to call ahead of each, and what runs.
    """
    seen: list[tuple[int, ...]] = []
    ahead: list[Callable[[], None]] = []
    compile_fx = cuda_graphs.compile_fx

    def inner(gm: fx.GraphModule, examples: Any, **options: Any) -> Any:
        def replay(*args: Any) -> Any:
            seen.append(tuple(each.data_ptr() for each in args))
            for each in ahead:
                each()
            return list(gm(*args))

        return replay

    def without_patches(*args: Any, config_patches: Any, **options: Any) -> Any:
        return compile_fx(*args, **options)

    monkeypatch.setattr(cuda_graphs, "compile_fx", without_patches)
    monkeypatch.setattr(cuda_graphs, "compile_fx_inner", inner)
    module = fx.symbolic_trace(step)
    for at, node in enumerate(module.graph.find_nodes(op="placeholder")):
        if at in static:
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(size), static_shapes=True) for size in sizes]
    return seen, ahead, cuda_graphs.compile_on_card(module, fakes, mode, cuda_graphs=True)


def counted(cache: Tensor) -> tuple[Tensor]:
    """Writes to its input."""
    cache.add_(1)
    return (cache * 2,)


def both_written(keys: Tensor, values: Tensor, x: Tensor) -> tuple[Tensor]:
    """Writes to two inputs."""
    keys.add_(x)
    values.sub_(x)
    return (keys * 2,)


def unaligned(value: float) -> Tensor:
    """float32 [4], four bytes after where one may lie."""
    return torch.full((5,), value)[1:]


@pytest.mark.parametrize("static", [(), (0,)])
def test_a_cache_elsewhere_is_recorded_anew_a_few_times(
    monkeypatch: pytest.MonkeyPatch, static: Sequence[int]
) -> None:
    """And from then on, or where it is not aligned as kernels were made for, copied: memory does not grow.

    Also of a cache that its caller marked as static: it may make many of them.
    """
    seen, _, run = replayed(monkeypatch, counted, 4, static=static)
    held = torch.zeros(5)
    odd = held[1:]
    for time in range(3):
        assert run(odd)[0].tolist() == [2.0 * (time + 1)] * 4
    assert held.tolist() == [0.0, 3.0, 3.0, 3.0, 3.0]
    assert (odd.data_ptr(),) not in seen
    caches = [torch.zeros(4) for _ in range(40)]
    for cache in caches * 2:
        run(cache)
    assert all(cache.tolist() == [2.0] * 4 for cache in caches)
    assert len({*seen}) == cuda_graphs.PLACES + 1


def test_what_never_moves_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters, of which a graph has many."""

    def step(counter: Tensor, cache: Tensor) -> tuple[Tensor]:
        counter.add_(1)
        cache.add_(counter)
        return (cache * 2,)

    seen, _, run = replayed(monkeypatch, step, 4, 4, static=(0,))
    counter = torch.zeros(4)
    caches = [unaligned(0.0), *(torch.zeros(4) for _ in range(40))]
    for cache in caches:
        run(counter, cache)
    assert [cache[0].item() for cache in caches] == [*range(1, 42)]
    assert {places[0] for places in seen} == {counter.data_ptr()}
    assert len({*seen}) == cuda_graphs.PLACES + 1


def test_threads_do_not_share_what_stands_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is held between copying its cache in and copying it out, while another runs: each keeps its own text."""
    seen, ahead, run = replayed(monkeypatch, both_written, 4, 4, 4)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread() is held:
            inside.set()
            assert go_on.wait(60)

    values = torch.zeros(4), torch.ones(4), torch.ones(4)  # all alive, so that each lies elsewhere
    first, second = ([unaligned(value), unaligned(value)] for value in (0.0, 100.0))
    run(*first, values[0])
    ahead.append(wait)
    held = threading.Thread(target=run, args=(*first, values[1]))
    held.start()
    assert inside.wait(60)
    run(*second, values[2])
    go_on.set()
    held.join()
    assert [each.tolist() for each in (*first, *second)] == [[v] * 4 for v in (1.0, -1.0, 101.0, 99.0)]
    assert len({*seen}) == 3
    assert len({places[:2] for places in seen}) == 2, "of the two caches, a thread's own"


def without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tensor that is made to stand for a cache finds no room."""
    like, made = cuda_graphs.empty_as, iter(range(9))

    def short(tensor: Tensor) -> Tensor:
        if next(made) == 1:
            raise torch.OutOfMemoryError
        return like(tensor)

    monkeypatch.setattr(cuda_graphs, "empty_as", short)


def test_without_room_for_a_copy_only_that_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, run = replayed(monkeypatch, both_written, 4, 4, 4)
    without_room(monkeypatch)
    caches = unaligned(0.0), unaligned(0.0)
    with pytest.raises(torch.OutOfMemoryError):
        run(*caches, torch.ones(4))
    assert run(*caches, torch.ones(4))[0].tolist() == [2.0] * 4
    assert [cache.tolist() for cache in caches] == [[1.0] * 4, [-1.0] * 4]


def test_without_room_for_a_copy_a_place_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: a recording takes less, and the request is answered."""
    seen, _, run = replayed(monkeypatch, both_written, 4, 4, 4)
    places = [(torch.zeros(4), torch.zeros(4)) for _ in range(cuda_graphs.PLACES + 1)]
    for pair in places[:-1]:
        run(*pair, torch.ones(4))
    without_room(monkeypatch)
    for time in (1.0, 2.0):
        assert run(*places[-1], torch.ones(4))[0].tolist() == [2 * time] * 4
        assert seen[-1][:2] == tuple(cache.data_ptr() for cache in places[-1])


def test_what_returns_an_input_that_it_writes_to_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be given another tensor in its stead; one that it only reads is of no matter."""
    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(3), static_shapes=True) for _ in range(2)]
    with monkeypatch.context() as patch:
        static, *_ = for_a_card(patch, fx.symbolic_trace(lambda x, ids: (x.add_(1),)), fakes, mode)
    assert static == [()]
    module = fx.symbolic_trace(lambda x, ids: (x.add_(1) * 2, ids[-1:]))
    static, _, run = for_a_card(monkeypatch, module, fakes, mode)
    assert static == [(0,)]
    ids = torch.arange(3.0)
    assert run(torch.zeros(3), ids)[1].data_ptr() == ids[2:].data_ptr()


def test_outputs_that_share_memory_share_it_as_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever dtype, and nothing besides is copied: they may be a small part of what was made."""

    def step(x: Tensor) -> tuple[Tensor, ...]:
        made = x * 2
        part = made[8:16].view(2, 4)
        return part, part[1], part.view(torch.int32)[:, ::3], made[12:12], made + 1

    mode = fake_mode()
    fakes = [mode.from_tensor(torch.zeros(4096), static_shapes=True)]
    *_, run = for_a_card(monkeypatch, fx.symbolic_trace(step), fakes, mode)
    part, row, bits, none, other = run(torch.ones(4096))
    run(torch.full((4096,), 7.0))
    row.add_(5)
    assert part.tolist() == [[2.0] * 4, [7.0] * 4]
    assert bits.tolist() == part.view(torch.int32)[:, ::3].tolist()
    assert none.shape == (0,)
    assert other.tolist() == [3.0] * 4096
    assert part.untyped_storage().nbytes() < 128


def test_what_returns_its_caches_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill that makes them: they would be in memory twice. Logits of some rows are, and caches written to."""

    def patches(step: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
        module, mode = fx.symbolic_trace(step), fake_mode()
        fakes = [mode.from_tensor(torch.empty(shape), static_shapes=True) for shape in shapes]
        with mode:
            module.graph.output_node().all_input_nodes[0].meta["example_value"] = step(*fakes)[0]
        with monkeypatch.context() as patch:
            return for_a_card(patch, module, fakes, mode)[1]

    keys, head = (1, 2048, 16), (128256, 16)
    assert patches(lambda x: (x.repeat(1, 1, 1024),), keys) == [{}]
    assert patches(lambda x, head: (F.linear(x, head),), (8, 16), head) == [{"triton.cudagraphs": True}]
    assert patches(lambda x: (x.add_(1).view(2048, -1),), (1, 2048, 1 << 13)) == [{"triton.cudagraphs": True}]
