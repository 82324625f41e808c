"""Normalising: one spelling, no no-ops, nothing observable changed."""

import operator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

X = (4, 4)


def _targets(gm: fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes if node.op in {"call_function", "call_method"}]


def _run(capture, function, *inputs: Tensor) -> list[object]:
    """Targets of the normalised graph, after comparing it with the captured one on copies of `inputs`."""
    (graph,) = capture(function, *inputs)
    gm = graph.normalised()
    theirs, ours = graph.arguments(), graph.arguments()
    with torch.no_grad():
        expected, actual = graph.copy()(*theirs), gm(*ours)
    for left, right in zip((*expected, *theirs), (*actual, *ours), strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=0)
    return _targets(gm)


SPELLINGS = {
    operator.add: [torch.add, lambda x, y: x.add(y), lambda x, y: x + y],
    operator.sub: [torch.sub, lambda x, y: x.subtract(y)],
    operator.mul: [torch.mul, torch.multiply, lambda x, y: x.mul(y)],
    operator.truediv: [torch.div, torch.true_divide, lambda x, y: x.div(y)],
    operator.pow: [torch.pow, lambda x, y: x.pow(y), lambda x, y: x**y],
    torch.matmul: [lambda x, y: x @ y, lambda x, y: x.matmul(y), torch.matmul],
    torch.sigmoid: [lambda x, y: x.sigmoid(), lambda x, y: F.sigmoid(x)],
    torch.tanh: [lambda x, y: x.tanh(), lambda x, y: F.tanh(x)],
    F.relu: [
        lambda x, y: torch.relu(x),
        lambda x, y: x.relu(),
        lambda x, y: F.relu(x, inplace=False),
    ],
    F.silu: [lambda x, y: F.silu(x), lambda x, y: F.silu(x, inplace=False)],
    F.softmax: [lambda x, y: torch.softmax(x, -1), lambda x, y: x.softmax(dim=-1)],
}


@pytest.mark.parametrize("target", SPELLINGS, ids=lambda t: t.__name__)
def test_every_spelling_becomes_one(target, capture) -> None:
    for function in SPELLINGS[target]:
        assert _run(capture, function, torch.rand(X), torch.rand(X)) == [target]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.add(x, y, alpha=2),
        lambda x, y: torch.div(x, y, rounding_mode="floor"),
        lambda x, y: 2 / x,
        lambda x, y: torch.relu(x) + 2**y,
    ],
)
def test_what_a_spelling_cannot_say_is_left(function, capture) -> None:
    _run(capture, function, torch.rand(X), torch.rand(X))


def test_square_is_a_power(capture) -> None:
    assert _run(capture, torch.square, torch.rand(X)) == [operator.pow]


FUNCTIONAL = {
    "iadd": lambda x, y: _then(x.exp(), lambda h: h.__iadd__(y)),
    "mul_": lambda x, y: x.exp().mul_(y),
    "relu_": lambda x, y: torch.sin(x).relu_(),
    "inplace": lambda x, y: F.relu(torch.sin(x), inplace=True),
    "number": lambda x, y: torch.sin(x).add_(1.5),
}


def _then(value: Tensor, step) -> Tensor:
    return step(value)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_in_place_on_a_fresh_value_becomes_functional(name: str, capture) -> None:
    targets = _run(capture, FUNCTIONAL[name], torch.rand(X), torch.rand(X))
    assert targets[-1] in {operator.add, operator.mul, F.relu}


def _alias(x: Tensor, y: Tensor) -> Tensor:
    h = torch.sin(x)
    view = h.t()
    h.mul_(2)
    return view + y


def _widened(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x).add_(y.double())


def _transposed(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x.t()).mul_(y)


IN_PLACE = {
    "argument": (lambda x, y: x.mul_(2) + y, "mul_"),
    "argument by dunder": (lambda x, y: x.__iadd__(y), "__iadd__"),
    "alias": (_alias, "mul_"),
    "wider operand": (_widened, "add_"),
    "column-major": (_transposed, "mul_"),
    "view of an argument": (lambda x, y: x.t().add_(1) + y, "add_"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_that_somebody_could_see_stays(name: str, capture) -> None:
    function, target = IN_PLACE[name]
    assert target in _run(capture, function, torch.rand(X), torch.rand(X))


DROPPED = {
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False) + 1,
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True) + 1,
    "contiguous": lambda x: x.contiguous() + 1,
    "to": lambda x: x.to(torch.float32) + 1,
    "to device": lambda x: x.to("cpu") + 1,
    "float": lambda x: x.float() + 1,
    "type_as": lambda x: x.type_as(x) + 1,
    "reshape": lambda x: x.reshape(4, -1) + 1,
}


@pytest.mark.parametrize("name", DROPPED)
def test_calls_that_return_their_argument_are_dropped(name: str, capture) -> None:
    assert _run(capture, DROPPED[name], torch.rand(X)) == [operator.add]


def test_module_construction_telemetry_is_dropped(capture) -> None:
    assert _run(capture, lambda x: nn.ModuleList([nn.Identity()])[0](x) + 1, torch.rand(X)) == [operator.add]


KEPT = {
    "contiguous of a transpose": (lambda x: x.t().contiguous() + 1, "contiguous"),
    "cast": (lambda x: x.to(torch.float64) + 1, "to"),
    "copy": (lambda x: x.to(torch.float32, copy=True) + 1, "to"),
    "copy by position": (lambda x: x.to(torch.float32, False, True) + 1, "to"),
    "handed out": (lambda x: torch.sin(x).contiguous(), "contiguous"),
    "written to": (lambda x: torch.sin(x).t().contiguous().t().contiguous().add_(1), "contiguous"),
    "view of the bits": (lambda x: x.view(torch.int32) + 1, "view"),
    "reshape of a transpose": (lambda x: x.t().reshape(4, 4) + 1, "reshape"),
    "channels last": (
        lambda x: x.view(1, 4, 2, 2).contiguous(memory_format=torch.channels_last) + 1,
        "contiguous",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_calls_that_do_something_are_kept(name: str, capture) -> None:
    function, target = KEPT[name]
    assert target in _run(capture, function, torch.rand(X))


def test_a_copy_is_a_copy(capture) -> None:
    """Writing to a copy must not write to the original, so that the copy cannot be dropped."""

    def function(x: Tensor) -> Tensor:
        copy = x.to(torch.float32, copy=True)
        copy.add_(1)
        return x + copy

    _run(capture, function, torch.rand(X))


class _Addmm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))


@pytest.mark.parametrize(
    ("forward", "flat"),
    [
        (lambda m, x: torch.addmm(m.bias, x.view(-1, 4), m.weight).view(2, 3, 6), False),
        (lambda m, x: torch.addmm(m.bias, x.reshape(6, 4), m.weight).reshape(2, 3, 6), False),
        (lambda m, x: torch.addmm(m.bias, x.view(-1, 4), m.weight).view(3, 2, 6), True),
        (lambda m, x: torch.addmm(m.bias, x.transpose(0, 1).reshape(-1, 4), m.weight).view(3, 2, 6), True),
    ],
)
def test_addmm_becomes_linear_to_the_last_bit(forward, flat: bool, capture) -> None:
    class Model(_Addmm):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    for dtype in (torch.float32, torch.bfloat16):
        targets = _run(capture, Model().to(dtype), torch.randn(2, 3, 4, dtype=dtype))
        assert torch.addmm not in targets
        assert F.linear in targets
        assert bool({"view", "reshape"} & set(targets)) is flat


@pytest.mark.parametrize(
    "turn",
    [lambda w: w.T, lambda w: w.mT, lambda w: w.t(), torch.ops.aten.numpy_T, torch.ops.aten.mT],
    ids=["T", "mT", "t", "numpy_T of torch 2.14", "mT of torch 2.14"],
)
def test_a_product_with_a_turned_parameter_is_a_linear(turn, capture) -> None:
    class Model(_Addmm):
        def forward(self, x: Tensor) -> Tensor:
            return x @ turn(self.weight)

    assert _run(capture, Model(), torch.randn(3, 6)) == [F.linear]


def test_scaled_addmm_is_no_linear(capture) -> None:
    class Model(_Addmm):
        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight, beta=0.5)

    assert _run(capture, Model(), torch.randn(3, 4)) == [torch.addmm]


def test_every_value_keeps_its_shape_and_its_module(capture) -> None:
    class Outer(_Addmm):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1), nn.ReLU(inplace=True)).eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.addmm(self.bias, x.view(-1, 4), self.weight).view(2, 3, 6))

    (graph,) = capture(Outer(), torch.randn(2, 3, 4))
    gm = graph.normalised()
    for node in gm.graph.nodes:
        if node.op in {"call_function", "call_method"}:
            assert isinstance(node.meta["example_value"], Tensor)
            if node.target is F.relu:
                (*_, (path, _)) = node.meta["nn_module_stack"].values()
                assert path.endswith(("inner[2]", "inner.2"))


def test_writes_keep_their_order(capture) -> None:
    def function(x: Tensor, cache: Tensor) -> Tensor:
        cache[0] = x[0].contiguous()
        first = cache.sum()
        cache.index_copy_(0, torch.tensor([1]), x[1:2].to(torch.float32))
        cache += 1
        return first + F.dropout(cache, 0.1, False).sum()

    targets = _run(capture, function, torch.rand(X), torch.rand(X))
    writes = [target for target in targets if target in {operator.setitem, "index_copy_", operator.iadd}]
    assert writes == [operator.setitem, "index_copy_", operator.iadd]
