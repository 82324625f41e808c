"""Normalising random programs over square matrices: views, writes, no-ops and linear maps in any order."""

import operator

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from srrc.passes.context import Context
from srrc.passes.normalise import Normalise

X = (4, 4)

_STEPS = {
    "add": lambda g, a, b, w: g.call_function(operator.add, (a, b)),
    "torch.mul": lambda g, a, b, w: g.call_function(torch.mul, (a, b)),
    "matmul": lambda g, a, b, w: g.call_method("matmul", (a, b)),
    "sin": lambda g, a, b, w: g.call_function(torch.sin, (a,)),
    "product": lambda g, a, b, w: g.call_function(operator.matmul, (a, g.call_method("t", (w,)))),
    "t": lambda g, a, b, w: g.call_method("t", (a,)),
    "view": lambda g, a, b, w: g.call_method("reshape", (a, 4, 4)),
    "slice": lambda g, a, b, w: g.call_function(operator.getitem, (a, slice(None))),
    "contiguous": lambda g, a, b, w: g.call_method("contiguous", (a,)),
    "to": lambda g, a, b, w: g.call_method("to", (a, torch.float32)),
    "dropout": lambda g, a, b, w: g.call_function(F.dropout, (a, 0.1, False)),
    "iadd": lambda g, a, b, w: g.call_function(operator.iadd, (a, b)),
    "mul_": lambda g, a, b, w: g.call_method("mul_", (a, b)),
    "relu_": lambda g, a, b, w: g.call_method("relu_", (a,)),
    "inplace": lambda g, a, b, w: g.call_function(F.relu, (a,), {"inplace": True}),
    "setitem": lambda g, a, b, w: g.call_function(operator.setitem, (a, slice(0, 2), 0.5)),
}


class _Faker(fx.Interpreter):
    """Writes fake values into the graph, as Dynamo does."""

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        n.meta["example_value"] = value
        return value


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(_STEPS)), st.integers(0, 9), st.integers(0, 9)), max_size=10),
    st.sets(st.integers(0, 9), min_size=1, max_size=3),
)
def test_random_programs_keep_values_and_side_effects(steps, handed_out) -> None:
    graph = fx.Graph()
    values = [graph.placeholder("x"), graph.placeholder("y")]
    weight = graph.placeholder("w")
    for name, left, right in steps:
        node = _STEPS[name](graph, values[left % len(values)], values[right % len(values)], weight)
        if name != "setitem":
            values.append(node)
    graph.output(tuple(values[index % len(values)] for index in handed_out))
    gm = fx.GraphModule(nn.Module(), graph)
    inputs = [torch.randn(X, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    expected_inputs = [value.clone() for value in inputs]
    try:
        expected = gm(*expected_inputs)
    except RuntimeError:  # a write to memory that it also reads
        assume(False)
    with FakeTensorMode() as mode:
        _Faker(gm).run(*(mode.from_tensor(value) for value in inputs))
    normalised = Normalise()(gm, Context(fqns={"w": "w"}))
    normalised.graph.lint()
    normalised.recompile()
    actual = normalised(*inputs)
    for left, right in zip((*expected, *expected_inputs), (*actual, *inputs), strict=True):
        assert left.stride() == right.stride()
        torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)
    # What shared storage with an argument still does, and nothing else does.
    for left, right in zip(expected, actual, strict=True):
        shared = [value.untyped_storage().data_ptr() for value in expected_inputs]
        ours = [value.untyped_storage().data_ptr() for value in inputs]
        assert [left.untyped_storage().data_ptr() == pointer for pointer in shared] == [
            right.untyped_storage().data_ptr() == pointer for pointer in ours
        ]
    code = normalised.code
    Normalise()(normalised, Context(fqns={"w": "w"})).recompile()
    assert normalised.code == code
