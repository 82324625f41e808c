"""Whether gated ops pay, with times that are made up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srrc.backends.triton import ops, tune
from srrc.backends.triton.kernels import sparse_linear
from srrc.backends.triton.worth import (
    Part,
    Took,
    _calls,
    channel_linear,
    gate_time,
    head,
    measure,
    neuron_mlp,
    whole_head,
    worth_it,
)
from srrc.ops.coarse_copy import coarse_copy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def a_card(tmp_path: Path) -> Iterator[None]:
    """The CPU is taken for a card of which nothing is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRRC_CACHE_DIR", str(tmp_path))
        patch.setattr(tune, "_card", lambda device: "some.json")
        patch.setattr(tune, "_cards", {})
        yield


def timed(gated: float, dense: float, seen: list[Any]) -> Callable[[tune.Call], float]:
    def timer(call: Any) -> float:
        seen.append(call)
        return dense if call.func is F.linear else gated

    return timer


def part(kind: str, rows: int, inputs: int, *dense: int, dtype: torch.dtype = torch.float32) -> Part:
    return Part(kind, rows, inputs, sum(dense), dtype, dense)


def pays(parts: Sequence[Part], timer: Callable[[tune.Call], float]) -> bool:
    return worth_it(measure(parts, CPU, timer))


PARTS = {
    "linear": [part("channel", 1, 64, 96)],
    "mlp": [part("channel", 2, 64, 128), part("row", 2, 64, 128), part("channel", 2, 128, 64)],
    "head": [Part("head", 1, 64, 478, torch.float32, (478,), tokens=480, exact=20)],
    "nothing by channel": [part("dense", 1, 64, 96), part("channel", 1, 64, 96)],
}


@pytest.mark.parametrize("name", PARTS)
def test_the_quicker_is_had(name: str) -> None:
    assert pays(PARTS[name], timed(1.0, 3.0, []))


@pytest.mark.parametrize("name", PARTS)
def test_what_is_slower_is_not(name: str) -> None:
    assert not pays(PARTS[name], timed(1.0, 0.4, []))


def test_all_of_a_head_counts() -> None:
    """Not its kernels alone: what torch does between them takes time too."""

    def timer(call: Any) -> float:
        return {F.linear: 2.0, whole_head: 3.0}.get(call.func, 0.1)

    assert not pays(PARTS["head"], timer)


def test_a_head_is_measured_without_what_inductor_never_makes() -> None:
    """Written as a sum, the rotation would be a tensor of rows x inputs x inputs here."""
    made: set[tuple[int, ...]] = set()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            made.update({tuple(found.shape)} if isinstance(found, torch.Tensor) else ())
            return found

    with Watched():
        _calls(Part("head", 8, 64, 480, torch.float32, (480,), tokens=480, exact=20), CPU)(None)()
    assert (8, 480) in made
    assert (8, 64, 64) not in made


def test_a_launch_of_three_stands_for_three_products() -> None:
    both = timed(1.0, 0.4, [])
    assert pays([part("channel", 1, 64, 32, 32, 32)], both)
    assert not pays([part("channel", 1, 64, 32, 32)], both)


def test_nothing_is_measured_twice() -> None:
    seen: list[Any] = []
    pays(PARTS["mlp"], timed(1.0, 3.0, seen))
    measured = len(seen)
    assert measured > 0
    assert pays(PARTS["mlp"], timed(3.0, 1.0, seen))
    assert len(seen) == measured


def test_what_does_not_run_is_not_had() -> None:
    def fails(call: Any) -> float:
        if call.func is F.linear:
            return 1.0
        raise RuntimeError("out of resource: shared memory")

    assert not pays(PARTS["linear"], fails)


def test_why_no_kernel_runs_is_told() -> None:
    def fails(call: Any) -> float:
        if call.func is F.linear:
            return 1.0
        raise RuntimeError("PTXAS error: no such card")

    for name, parts in PARTS.items():
        found = measure(parts, CPU, fails)
        assert found is not None
        told = {each.failed for each in found if each.part.kind != "dense"}
        assert told == {"RuntimeError('PTXAS error: no such card')"}, name
    found = measure(PARTS["linear"], CPU, timed(1.0, 3.0, []))
    assert found is not None
    assert [each.failed for each in found] == [""]


def test_where_dense_products_do_not_run_nothing_is_known_to_be_saved() -> None:
    def fails(call: Any) -> float:
        if call.func is F.linear:
            raise RuntimeError("cuBLAS")
        return 1.0

    found = measure(PARTS["linear"], CPU, fails)
    assert found is not None
    assert worth_it(found)
    assert gate_time(found, rows=1) is None


@pytest.mark.parametrize("name", PARTS)
def test_what_is_timed_is_ours(name: str) -> None:
    """Nothing is drawn that the user would have drawn, and torch's default dtype changes nothing."""
    before, seen = torch.get_rng_state(), []
    torch.set_default_dtype(torch.float64)
    try:
        pays(PARTS[name], timed(1.0, 3.0, seen))
        for call in {str(each.args): each for each in seen}.values():
            call()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    tensors = [
        each for each in tree_leaves([(call.args, call.keywords) for call in seen]) if torch.is_tensor(each)
    ]
    assert tensors
    assert torch.float64 not in {each.dtype for each in tensors}


def test_without_room_to_run_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: tune.Call) -> float:
        raise torch.OutOfMemoryError

    assert measure(PARTS["linear"], CPU, full) is None
    assert pays(PARTS["linear"], full)


def test_a_space_that_has_changed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the time of a configuration that is gone would stand for the one that runs."""
    seen: list[Any] = []
    pays(PARTS["linear"], timed(1.0, 3.0, seen))
    less = sparse_linear.configs(1, 64, 96)[1:]
    monkeypatch.setattr("srrc.backends.triton.ops.channel_linear.configs", lambda *sizes: less)
    assert not pays(PARTS["linear"], timed(4.0, 3.0, seen))


def test_without_room_for_a_weight_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("srrc.backends.triton.worth._calls", full)
    assert pays(PARTS["linear"], timed(3.0, 1.0, []))


def test_what_is_timed_computes() -> None:
    """Each call runs, under the interpreter, and gives as many numbers as its product has."""
    seen: list[Any] = []
    for parts in PARTS.values():
        pays(parts, timed(1.0, 3.0, seen))
    sizes = set()
    for call in {str(each.args): each for each in seen}.values():
        found = call()
        sizes.add(tuple((found[0] if isinstance(found, tuple) else found).shape))
    assert {(1, 96), (2, 128), (2, 64), (1, 478), (1, 480)} <= sizes


def test_parts_of_ops() -> None:
    x, by_row = torch.randn(1, 2, 8), torch.randn(12, 8)
    found = channel_linear(x, [by_input(4, 8), by_input(6, 8), by_row], [None] * 3)
    assert [(each.kind, each.dense) for each in found] == [("channel", (4, 6)), ("dense", (12,))]
    biased = channel_linear(x, [by_input(4, 8)] * 5, [None, None, *[torch.zeros(4)] * 3])
    assert [each.dense for each in biased] == [(4, 4, 4), (4, 4)]
    assert [each.dense for each in channel_linear(x, [by_input(4, 8)] * 4, [None] * 4)] == [(4, 4, 4), (4,)]
    mlp = (by_input(12, 8), None, by_row, None, by_input(8, 12), None, "silu", *[None] * 6)
    assert [each.kind for each in neuron_mlp(x, *mlp, True)] == ["channel", "row", "channel"]
    assert [each.kind for each in neuron_mlp(x, *mlp, False)] == ["channel", "dense", "channel"]
    both = (*mlp[:2], by_input(12, 8), *mlp[3:])
    assert [each.dense for each in neuron_mlp(x, *both, False)] == [(12, 12), (8,)]
    plain = (None, None, by_input(12, 8), None, by_input(8, 12), None, "gelu", *[None] * 6)
    assert [each.kind for each in neuron_mlp(x, *plain, False)] == ["channel", "channel"]
    tokens = head(
        x, torch.randn(50, 8), None, None, None, torch.zeros(64, 8, dtype=torch.int8), *[None] * 5, 4
    )
    assert tokens == [Part("head", 2, 8, 50, torch.float32, (50,), coarse=torch.int8, tokens=64, exact=4)]


def by_input(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(inputs, outputs).t()


def calls() -> dict[str, tuple[Any, Any, list[Any]]]:
    """By name: what tells an op's parts, the op, and its arguments, of ops that take several launches."""
    x, norm, gate = torch.randn(1, 64), torch.ones(64), torch.zeros(2)
    counters = torch.zeros(9, dtype=torch.int64)
    biases = [torch.zeros(32), None, torch.zeros(32), None, torch.zeros(96)]
    weights = [*(by_input(32, 64) for _ in range(4)), torch.randn(96, 64)]
    mlp = [by_input(96, 64), None, torch.randn(96, 64), torch.zeros(96), by_input(64, 96), None, "silu"]
    mlp += [norm, torch.ones(96), torch.ones(96), torch.zeros(3, 2), counters, None]
    copy = coarse_copy(torch.randn(50, 64), None, torch.eye(64), torch.zeros(64), multiple=16)
    tables = [torch.eye(64), torch.zeros(64), copy.coarse, copy.scale, copy.bias, norm]
    return {
        "weights": (
            channel_linear,
            ops.channel_linear.channel_linear,
            [x, weights, biases, norm, gate, counters],
        ),
        "mlp": (neuron_mlp, ops.neuron_mlp.neuron_mlp, [x, *mlp, False]),
        "rows of up": (neuron_mlp, ops.neuron_mlp.neuron_mlp, [x, *mlp, True]),
        "head": (
            head,
            ops.vocab_head.vocab_head,
            [x, torch.randn(50, 64), None, *tables, gate, torch.zeros(4, dtype=torch.int64), 4],
        ),
    }


@pytest.mark.parametrize("name", calls())
def test_what_is_measured_is_what_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch asks for the configuration that was measured for it: none is measured in vain, none is a guess."""
    parts, op, given = calls()[name]
    measure(parts(*given), CPU, timed(1.0, 3.0, []))
    measured = {key for key in tune._known("some.json").records if not key.startswith(("dense", "head"))}
    asked: set[str] = set()

    def lookup(key: str, *rest: Any) -> Any:
        asked.add(key)
        return tune.lookup(key, *rest)

    for module in (ops.channel_linear, ops.neuron_mlp, ops.vocab_head):
        monkeypatch.setattr(module, "lookup", lookup)
    op(*given)
    assert asked == measured


def test_launches_of_one_list_differ_in_all_but_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, op, given = calls()["weights"]
    best = {
        96: sparse_linear.Config(16, 64, 2, 3, block=512),
        32: sparse_linear.Config(32, 32, 1, 2, block=128),
    }
    ran: list[sparse_linear.Config] = []

    def launch(*args: Any, config: sparse_linear.Config, **options: Any) -> torch.Tensor:
        ran.append(config)
        return sparse_linear.sparse_linear(*args, config=config, **options)

    monkeypatch.setattr(ops.channel_linear, "config_for", lambda rows, inputs, outputs, *rest: best[outputs])
    monkeypatch.setattr(ops.channel_linear, "sparse_linear", launch)
    op(*given)
    assert ran == [best[96], replace(best[32], block=512)]  # the largest launch's


def test_what_a_gate_saves() -> None:
    first, second = (Took(part("channel", 1, 64, n), 3.0, n) for n in (4, 6))
    found = gate_time([first, second], rows=2)
    assert found is not None
    assert (found.opened, found.rows) == (11e-3, 2)
    assert found.saved(0.5**0.5) == pytest.approx(5e-3)
    assert found.break_even == 0
    assert gate_time([Took(part("dense", 1, 64, 4), 1.0, 1.0)], rows=1) is None


def test_a_head_saves_with_its_first_channel() -> None:
    """Four bytes of exact weights for one of the coarse copy."""
    found = gate_time([Took(PARTS["head"][0], 3.0, 8.0)], rows=1)
    assert found is not None
    assert found.opened == pytest.approx(10e-3)
    assert found.saved(1e-6) == pytest.approx(6e-3)
    assert found.saved(0.5) == pytest.approx(7e-3)


def test_launches_are_timed_on_their_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    class Entered:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *args: object) -> None:
            entered.pop()

    def timer(call: tune.Call) -> float:
        assert entered == [torch.device("cuda:1")]
        return 1.0

    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(tune, "_events", timer)
    assert tune.events(torch.device("cuda:1"), lambda: None) == 1.0
