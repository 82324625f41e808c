"""Region keys: equal exactly where two runs of nodes compute the same function of their inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from srrc.passes.partition import Region, partition
from srrc.passes.region_key import free_symbols


def _region(function: Callable[..., Any], *inputs: Any, mode: FakeTensorMode | None = None) -> Region:
    """All of `function` as one region; tensors become fake ones, and share storage where `inputs` do."""
    gm = fx.symbolic_trace(function)
    with mode or FakeTensorMode() as fake:
        values = [fake.from_tensor(v) if type(v) is Tensor else v for v in inputs]
        for node, value in zip(gm.graph.find_nodes(op="placeholder"), values, strict=True):
            node.meta["example_value"] = value
    (region,) = partition(gm, [])
    return region


def _key(function: Callable[..., Any], *inputs: Any) -> str:
    return _region(function, *inputs).key


A = torch.ones(2, 3)


def test_names_do_not_matter() -> None:
    def one(first: Tensor, second: Tensor) -> Tensor:
        return torch.relu(first + second)

    def other(left: Tensor, right: Tensor) -> Tensor:
        return torch.relu(left + right)

    assert _key(one, A, A.clone()) == _key(other, A, A.clone())


@pytest.mark.parametrize(
    "other",
    [
        lambda a, b: b - a.relu(),  # other operands
        lambda a, b: a.relu() + b,  # another operator
        lambda a, b: a.relu() - b - 1,  # more of them
        lambda a, b: a.sigmoid() - b,
        lambda a, b: (a.relu() - b, a)[0] * 1,
        lambda a, b: torch.sub(a.relu(), b, alpha=2),  # another constant
        lambda a, b: a.relu() - a,  # one input twice
    ],
)
def test_another_function_has_another_key(other: Callable[..., Any]) -> None:
    assert _key(lambda a, b: a.relu() - b, A, A.clone()) != _key(other, A, A.clone())


def test_the_order_of_operands_counts() -> None:
    # Both read their inputs in the order a, b, so that only the operands tell them apart.
    left = _key(lambda a, b: torch.sub(a.relu(), b.relu()), A, A.clone())
    right = _key(lambda a, b: [a := a.relu(), b := b.relu(), torch.sub(b, a)][-1], A, A.clone())
    assert left != right


def test_which_values_come_out_counts() -> None:
    def both(a: Tensor) -> tuple[Tensor, Tensor]:
        b = a.relu()
        return b, b.sin()

    assert _key(both, A) != _key(lambda a: (a.relu().sin(),), A)


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(2, 4),
        torch.ones(3, 2).t(),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, requires_grad=True),
        torch.ones(2, 3, 1),
        torch.ones(2, 3, device="meta"),
    ],
)
def test_inputs_of_another_kind_have_another_key(other: Tensor) -> None:
    assert _key(lambda a: a * 2, A) != _key(lambda a: a * 2, other)


def test_inputs_that_share_storage_have_another_key() -> None:
    """Where one is written to, the other changes too: the compiled code must know."""

    def function(a: Tensor, b: Tensor) -> Tensor:
        a.add_(1)
        return a + b

    base = torch.ones(4, 3)
    assert _key(function, base[:2], base[1:3]) != _key(function, A, A.clone())


def test_numbers_among_the_inputs_count() -> None:
    assert _key(lambda a, n: a * n, A, 2) != _key(lambda a, n: a * n, A, 3)
    assert _key(lambda a, n: a * n, A, 2) != _key(lambda a, n: a * n, A, 2.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0.0, -0.0), (torch.float32, torch.float64), ("sum", "mean"), (None, 0)],
)
def test_constants_count_with_their_type(one: object, other: object) -> None:
    def with_constant(value: object) -> str:
        gm = fx.symbolic_trace(lambda a: torch.nn.functional.relu(a))  # noqa: PLW0108
        (node,) = gm.graph.find_nodes(op="call_function", target=torch.nn.functional.relu)
        node.kwargs = {"constant": value}
        (region,) = partition(gm, [])
        return region.key

    assert with_constant(one) != with_constant(other)
    assert with_constant(one) == with_constant(one)


def test_functions_of_one_name_from_two_modules_differ() -> None:
    assert _key(lambda a: torch.relu(a), A) != _key(lambda a: torch.nn.functional.relu(a), A)  # noqa: PLW0108


def _held(value: Any) -> fx.GraphModule:
    """A module that is called with a graph of its own, `x * value`, as control flow holds its branches."""
    inner = fx.symbolic_trace(lambda x: x * value)
    graph = fx.Graph()
    x = graph.placeholder("x")
    body = graph.get_attr("body")
    graph.output(graph.call_function(torch.ops.higher_order.invoke_subgraph, (body, "name", x)))
    return fx.GraphModule({"body": inner}, graph)


def test_the_code_of_held_graphs_counts() -> None:
    keys = []
    for value in (2, 2, 3):
        gm = _held(value)
        (region,) = partition(gm, [])
        keys.append(region.key)
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_held_graphs_that_hold_tensors_are_not_mixed_up() -> None:
    """Equal code over different constants is not the same function."""
    keys = []
    for number in (1.0, 2.0):
        gm = _held(3)
        gm.body.register_buffer("constant", torch.tensor([number]))
        body = gm.body.graph
        mul = next(node for node in body.nodes if node.op == "call_function")
        with body.inserting_before(mul):
            mul.args = (mul.args[0], body.get_attr("constant"))
        gm.body.recompile()
        (region,) = partition(gm, [])
        keys.append(region.key)
    assert keys[0] != keys[1]


def _symbolic(*shapes: tuple[int, ...]) -> list[Tensor]:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return [mode.from_tensor(torch.ones(shape), static_shapes=False) for shape in shapes]


def test_symbols_are_named_by_position() -> None:
    """The cache lengths of two layers are symbols of their own, and yet the layers are equal."""
    first, second, _ = _symbolic((5, 7), (6, 8), (5, 9))
    assert first.shape != second.shape
    assert _key(lambda a: a * 2, first) == _key(lambda a: a * 2, second)


def test_a_symbol_shared_by_two_inputs_is_not_two_symbols() -> None:
    a, b = _symbolic((5, 7), (6, 8))
    mode = a.fake_mode
    with mode:
        same = torch.empty(a.shape[0], b.shape[1])
    assert _key(lambda x, y: x.sum() + y.sum(), a, same) != _key(lambda x, y: x.sum() + y.sum(), a, b)


def test_free_symbols_come_in_order_of_appearance() -> None:
    a, b = _symbolic((5, 7), (6, 8))
    names = [size.node.expr for size in (*a.shape, *b.shape)]
    assert free_symbols((a, b)) == names
    assert free_symbols([b, a]) == [*names[2:], *names[:2]]
    assert free_symbols(a.shape[0]) == names[:1]
    assert free_symbols((3, None, torch.ones(2))) == []
