"""The Dynamo door: what runs under Inductor runs here, with the same answers; errors are one line."""

import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srrc
from srrc.errors import OptionError, SrrError, SrrWarning, StrictError
from srrc.passes.normalise import Normalise
from srrc.report import compiled_graphs
from srrc.runtime import fallback

WIDTH = 16


class Block(nn.Module):
    """A pre-norm residual MLP with a gate, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.again = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32)
        self.down = nn.Linear(32, WIDTH)
        self.one, self.two = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return x + self.two(torch.relu(self.one(self.again(x))))


class Stack(nn.Module):
    def __init__(self, layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(Block() for _ in range(layers))
            self.head = nn.Linear(WIDTH, 24)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    fallback._warned.clear()
    yield
    torch._dynamo.reset()


def _x(*leading: int, seed: int = 0) -> Tensor:
    return torch.randn(*(leading or (3,)), WIDTH, generator=torch.Generator().manual_seed(seed))


def _same(compiled: Any, eager: Any, *args: Any) -> Any:
    """Call both with copies of the arguments and compare results and what is left of the arguments."""
    ours, theirs = [a.clone() for a in args], [a.clone() for a in args]
    with torch.no_grad():
        actual, expected = compiled(*ours), eager(*theirs)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours, theirs)
    return actual


def test_a_model_runs_with_its_pathways_and_equal_layers_once() -> None:
    model = Stack(4)
    compiled = torch.compile(model, backend="srr")
    _same(compiled, model, _x())
    (graph,) = compiled_graphs(compiled)
    assert graph.regions[1] < graph.regions[0]
    kinds = [pathway.kind for pathway in graph.pathways]
    assert (kinds.count("neuron"), kinds.count("residual")) == (8, 8)
    assert srrc.stats(compiled)["fallbacks"] == {}


# Options


@pytest.mark.parametrize("budget", [0, -1, math.nan, "half", True, 2.0])
def test_a_wrong_budget_reaches_the_user_as_srrcs_own_error(budget: object) -> None:
    compiled = torch.compile(Stack(), backend="srr", options={"budget": budget})
    with torch.no_grad(), pytest.raises(OptionError, match="budget=") as caught:
        compiled(_x())
    assert isinstance(caught.value, SrrError)
    assert "BackendCompilerFailed" not in type(caught.value).__name__
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_option_names_the_nearest() -> None:
    compiled = torch.compile(Stack(), backend="srr", options={"bugdet": 0.5})
    with torch.no_grad(), pytest.raises(OptionError, match="did you mean 'budget'"):
        compiled(_x())


def test_inductors_modes_are_refused() -> None:
    compiled = torch.compile(Stack(), backend="srr", mode="max-autotune")
    with torch.no_grad(), pytest.raises(OptionError, match="mode='max-autotune'"):
        compiled(_x())


def test_a_budget_needs_a_profile_and_the_profile_must_be_one(tmp_path: Any) -> None:
    from srrc.errors import ProfileError

    no_profile = tmp_path / "model.srr"
    no_profile.write_bytes(b"not a profile")
    for options, error in (
        ({"budget": 0.5}, OptionError),
        ({"budget": 0.5, "profile": str(no_profile)}, ProfileError),
        ({"budget": 0.5, "profile": str(tmp_path / "missing.srr")}, ProfileError),
        ({"budget": 0.5, "profile": 7}, OptionError),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(Stack(), backend="srr", options=options)
        with torch.no_grad(), pytest.raises(error, match="profile"):
            compiled(_x())


def test_an_error_in_the_options_leaves_the_model_usable() -> None:
    model = Stack()
    with torch.no_grad(), pytest.raises(OptionError):
        torch.compile(model, backend="srr", options={"budget": -1})(_x())
    _same(torch.compile(model, backend="srr"), model, _x())


# Fallbacks


def _break(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Normalise, gm: Any, context: Any) -> Any:
        raise RuntimeError("a pass that fails")

    monkeypatch.setattr(Normalise, "__call__", fail)


def test_a_pass_that_raises_gives_the_dense_graph_one_warning_and_a_count(monkeypatch) -> None:
    _break(monkeypatch)
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for shape in ((3,), (2, 5), (4, 6)):
            _same(compiled, model, _x(*shape))
    (warning,) = [w for w in caught if issubclass(w.category, SrrWarning)]
    assert "a pass that fails" in str(warning.message)
    fallbacks = srrc.stats(compiled)["fallbacks"]
    assert list(fallbacks) == ["the region did not compile"]
    assert fallbacks["the region did not compile"] == len(compiled_graphs(compiled))
    assert "a pass that fails" in str(srrc.explain(compiled))


def test_strict_turns_the_warning_into_an_error(monkeypatch) -> None:
    _break(monkeypatch)
    compiled = torch.compile(Stack(), backend="srr", options={"strict": True})
    with torch.no_grad(), pytest.raises(StrictError, match="a pass that fails") as caught:
        compiled(_x())
    assert "RuntimeError" in str(caught.value)


def test_with_gradients_the_dense_graph_runs_and_that_is_no_fallback() -> None:
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    x, y = _x().requires_grad_(), _x().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SrrWarning)
        compiled(x).square().sum().backward()
    ours = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    model(y).square().sum().backward()
    torch.testing.assert_close(ours, [p.grad for p in model.parameters()])
    torch.testing.assert_close(x.grad, y.grad)
    assert srrc.stats(compiled)["fallbacks"] == {}
    assert "gradients are on" in str(srrc.explain(compiled))


def test_an_input_that_requires_grad_under_no_grad_is_inference() -> None:
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    x = _x().requires_grad_()
    with torch.no_grad():
        actual = compiled(x)
        torch.testing.assert_close(actual, model(x))
    assert not actual.requires_grad
    (graph,) = compiled_graphs(compiled)
    assert graph.pathways


# Programs


def test_inference_mode() -> None:
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    with torch.inference_mode():
        x = _x()
        actual = compiled(x)
        torch.testing.assert_close(actual, model(x))
        assert actual.is_inference()
    _same(compiled, model, _x())
    assert srrc.stats(compiled)["fallbacks"] == {}


@pytest.mark.parametrize("where", ["around", "inside", "undone inside"])
def test_autocast(where: str) -> None:
    model = Stack()

    def function(x: Tensor) -> Tensor:
        if where == "around":
            return model(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside"):
            return model(x)

    compiled = torch.compile(function, backend="srr")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=where != "inside"):
        for x in (_x(), _x(40)):
            actual, expected = compiled(x), function(x)
            assert actual.dtype == expected.dtype
            # Inductor leaves out the roundings between the operators that it fuses.
            scale = {} if expected.dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
            torch.testing.assert_close(actual, expected, **scale)
    assert srrc.stats(model)["fallbacks"] == {}


def test_graph_breaks() -> None:
    model = Stack(2)

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner.layers[0](x)
            torch._dynamo.graph_break()
            x = self.inner.layers[1](x) * 2
            torch._dynamo.graph_break()
            return self.inner.head(x)

    compiled = torch.compile(Broken(), backend="srr")
    _same(compiled, compiled._orig_mod, _x())
    assert len(compiled_graphs(compiled)) == 3
    assert srrc.stats(compiled)["fallbacks"] == {}


def test_a_function_that_closes_over_a_module() -> None:
    model = Stack()

    @torch.compile(backend="srr")
    def function(x: Tensor) -> Tensor:
        return model(x) * 2

    _same(function, lambda x: model(x) * 2, _x())
    assert sum(graph.calls for graph in compiled_graphs(model)) == 1


def test_two_models_of_one_class_do_not_mix_their_weights() -> None:
    one, other = Stack(seed=1), Stack(seed=2)
    first, second = torch.compile(one, backend="srr"), torch.compile(other, backend="srr")
    for _ in range(2):
        a = _same(first, one, _x())
        b = _same(second, other, _x())
        assert not torch.allclose(a, b)


def test_one_module_twice_in_a_model_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(24, WIDTH)
            self.block = Block()
            self.head = nn.Linear(WIDTH, 24, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.block(self.block(self.embed(ids))))

    model = Tied()
    compiled = torch.compile(model, backend="srr")
    ids = torch.tensor([[1, 5, 7]])
    before = _same(compiled, model, ids)
    with torch.no_grad():
        model.embed.weight.mul_(1.5)
    assert not torch.allclose(_same(compiled, model, ids), before)


def test_weights_that_change_are_seen_at_once() -> None:
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    _same(compiled, model, _x())
    with torch.no_grad():
        model.layers[0].up.weight.mul_(2)
    _same(compiled, model, _x())
    model.load_state_dict(Stack(seed=5).state_dict())
    _same(compiled, model, _x())
    model.head.weight.data = torch.randn(24, WIDTH)
    _same(compiled, model, _x())
    model.to(torch.bfloat16)
    with torch.no_grad():
        actual, expected = (run(_x().to(torch.bfloat16)) for run in (compiled, model))
    torch.testing.assert_close(actual, expected, rtol=0.03, atol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(WIDTH, 3).t(),
        lambda: torch.randn(3, 2 * WIDTH)[:, ::2],
        lambda: torch.randn(1, WIDTH).expand(3, WIDTH),
        lambda: torch.randn(2, 3, WIDTH).transpose(0, 1),
        lambda: torch.randn(5, 4 * WIDTH)[1:4, 3 : 3 + WIDTH],
    ],
    ids=["transposed", "every other", "expanded", "batch second", "unaligned"],
)
def test_inputs_of_any_strides(make: Any) -> None:
    model = Stack(1)
    compiled = torch.compile(model, backend="srr")
    x = make()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert srrc.stats(compiled)["fallbacks"] == {}


def test_no_rows_one_row_and_many() -> None:
    model = Stack(1)
    compiled = torch.compile(model, backend="srr")
    for rows in (0, 1, 2, 0, 9, 64, 3):
        _same(compiled, model, _x(rows))
    assert srrc.stats(compiled)["fallbacks"] == {}


def test_an_output_may_be_an_input_or_a_view_of_one() -> None:
    model = Stack(1)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = model(x)
        return x, y, x[1:], y.t(), y

    compiled = torch.compile(function, backend="srr")
    x = _x()
    with torch.no_grad():
        same, y, view, transposed, again = compiled(x)
    assert same is x
    assert view.data_ptr() == x[1:].data_ptr()
    assert transposed.data_ptr() == y.data_ptr()
    assert again is y
    view.add_(1)
    assert torch.equal(x[1:], view)


class Writes(nn.Module):
    """Writes to its input, and to a value that an earlier region computed, through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        h = x * 2
        top = h[:1]
        h = self.first(h)
        cache[1:2].copy_(h[:1])
        top.mul_(3)
        x.add_(1)
        self.seen.add_(h.mean(0))
        h = self.second(h + cache.sum(0)) + top + x
        cache[0].zero_()
        return h, cache[1]


def test_writes_reach_across_regions() -> None:
    model, eager = Writes(), Writes()
    eager.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="srr")
    for seed in (0, 1):
        _same(compiled, eager, _x(seed=seed), _x(4, seed=7))
        torch.testing.assert_close(model.seen, eager.seen)
    (graph,) = compiled_graphs(compiled)
    assert graph.regions[0] > 1
    assert srrc.stats(compiled)["fallbacks"] == {}


def test_inputs_that_overlap(monkeypatch, tmp_path) -> None:
    # Inductor's cache takes code for inputs that do not overlap for code for those that do.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, eager = Writes(), Writes()
    eager.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="srr")
    results = []
    for module in (compiled, eager):
        base = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            results.append([*module(base[:3], base[2:6]), base])
    torch.testing.assert_close(results[0], results[1])


def test_randomness_follows_the_seed() -> None:
    def function(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True) + torch.rand_like(x)

    compiled = torch.compile(function, backend="srr")
    with torch.no_grad():
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(compiled(_x(8)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_what_is_no_tensor_comes_through() -> None:
    def function(x: Tensor, scale: float, names: dict[str, int]) -> dict[str, Any]:
        return {"y": x * scale, "n": names["n"] + x.shape[0], "none": None, "text": "t"}

    compiled = torch.compile(function, backend="srr", dynamic=True)
    for rows in (3, 4):
        out = compiled(_x(rows), 2.5, {"n": rows})
        assert out["n"] == 2 * rows
        assert (out["none"], out["text"]) == (None, "t")
        assert torch.equal(out["y"], _x(rows) * 2.5)


def test_numbers_that_vary() -> None:
    model = Stack(1)

    def function(x: Tensor, scale: float, power: int) -> Tensor:
        return model(x * scale) * math.sqrt(scale) ** power + power

    compiled = torch.compile(function, backend="srr")
    for number, (scale, power) in enumerate([(2.5, 2), (3.5, 3), (4.5, 4), (1.0, 0)]):
        x = _x(3 + number)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, scale, power), function(x, scale, power))
    assert srrc.stats(model)["fallbacks"] == {}


def test_a_number_that_inductor_wants_as_it_is() -> None:
    """Dynamo has taken it for one that varies: it hears so while the graph is compiled, and traces again."""
    model = Stack(1)

    def function(x: Tensor, scale: float) -> Tensor:
        x = model(x)[None]
        return F.scaled_dot_product_attention(x, x, x, scale=scale)

    compiled = torch.compile(function, backend="srr", options={"strict": True}, dynamic=True)
    for rows in (3, 4):
        with torch.no_grad():
            torch.testing.assert_close(compiled(_x(rows), 0.5), function(_x(rows), 0.5))
    (graph,) = compiled_graphs(model)
    assert graph.regions[1] >= 1


def test_vmap_over_a_model() -> None:
    model = Stack(1)

    def function(x: Tensor) -> Tensor:
        return torch.func.vmap(model)(x) + 1

    compiled = torch.compile(function, backend="srr")
    _same(compiled, function, _x(4, 3))
    assert srrc.stats(model)["fallbacks"] == {}


# Threads


def test_eight_threads_call_one_model_while_it_compiles() -> None:
    model = Stack()
    compiled = torch.compile(model, backend="srr")
    inputs = [_x(2 + 13 * (index % 4), seed=index) for index in range(8)]  # decode and prefill
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    answers: dict[int, list[Tensor]] = {}
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(index: int) -> None:
        try:
            barrier.wait()
            with torch.no_grad():
                answers[index] = [compiled(inputs[index]) for _ in range(10)]
        except BaseException as error:  # noqa: BLE001  (the main thread reports it)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    for index, want in enumerate(expected):
        for answer in answers[index]:
            torch.testing.assert_close(answer, want)
    stats = srrc.stats(compiled)
    assert stats["fallbacks"] == {}
    assert stats["calls"] == 80
