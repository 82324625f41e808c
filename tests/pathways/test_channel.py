"""Input channels: which linears share a gate, and how they are spelt."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(16, 16), nn.Linear(16, 8, bias=False), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.cat([self.q(x), self.k(x)], -1))


def test_linears_that_read_one_value_share_one_gate(capture) -> None:
    (graph,) = capture(Shared(), torch.randn(2, 3, 16))
    graph.find()
    first, second = graph.of("channel")
    assert [linear.fqn for linear in first.site.linears] == ["q.weight", "k.weight"]
    assert first.weights == ("q.weight", "q.bias", "k.weight")
    assert (first.place, first.units, second.place, second.units) == ("q.weight", 16, "o.weight", 24)
    # x once, two outputs, two matrices and one bias, in fp32
    assert first.cost.bytes == 4 * (6 * 16 + 6 * 24 + 16 * 24 + 16)
    assert first.cost.flops == 2 * 6 * 16 * 24


SPELLINGS = {
    "functional": lambda x, w, b: F.linear(x, weight=w, bias=b),
    "product with T": lambda x, w, b: x @ w.T,
    "product with t()": lambda x, w, b: torch.matmul(x, w.t()),
    "product with transpose": lambda x, w, b: x.matmul(w.transpose(0, 1)),
    "product with permute": lambda x, w, b: x @ w.permute(1, 0),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_linear(spelling: str, capture) -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return SPELLINGS[spelling](x, self.weight, self.bias)

    (graph,) = capture(Model(16, 8), torch.randn(2, 3, 16))
    graph.find()
    (pathway,) = graph.of("channel")
    (linear,) = pathway.site.linears
    assert (linear.fqn, linear.in_features, linear.out_features, linear.transposed) == (
        "weight",
        16,
        8,
        False,
    )
    assert (linear.bias is not None) == (spelling == "functional")


@pytest.mark.parametrize("shape", [(4, 16), (2, 3, 16), (2, 2, 3, 16)])
def test_a_conv1d_weight_is_transposed(shape: tuple[int, ...], capture) -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            flat = torch.addmm(self.bias, x.view(-1, 16), self.weight)
            return flat.view(*x.shape[:-1], 8)

    model, x = Conv1D(), torch.randn(shape)
    (graph,) = capture(model, x)
    gm = graph.find()
    (pathway,) = graph.of("channel")
    (linear,) = pathway.site.linears
    assert (linear.in_features, linear.out_features, linear.transposed) == (16, 8, True)
    assert linear.weight.name in graph.context.fqns
    if len(shape) == 3:  # the reshapes around it are gone
        assert linear.x.op == "placeholder"
    with torch.no_grad():
        assert torch.equal(gm(*graph.arguments())[0], model(x))


def test_a_product_that_adds_nothing_to_learn_is_no_linear(capture) -> None:
    (graph,) = capture(lambda x, y: x @ y.T, torch.randn(3, 16), torch.randn(8, 16))
    graph.find()
    assert graph.context.pathways == []
    assert graph.context.refusals == []


def test_a_weight_that_multiplies_from_the_left_is_refused(capture) -> None:
    class Left(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    (graph,) = capture(Left(16, 8), torch.randn(16, 5))
    graph.find()
    assert graph.of("channel") == []
    assert graph.refused("channel") == [("weight", "UNSUPPORTED_SHAPE")]


def test_what_autocast_casts_is_refused(capture) -> None:
    class Cast(Shared):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    (graph,) = capture(Cast(), torch.randn(2, 3, 16))
    graph.find()
    assert graph.of("channel") == []
    assert {reason for _, reason in graph.refused("channel")} == {"UNSUPPORTED_DTYPE"}


def test_a_layer_used_twice_has_two_places(capture) -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.sin(super().forward(x)))

    (graph,) = capture(Twice(16, 16), torch.randn(4, 16))
    graph.find()
    assert [p.place for p in graph.of("channel")] == ["weight", "weight#2"]


def test_layers_inside_a_nested_compile_region_have_their_own_places(capture) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        @torch.compiler.nested_compile_region
        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(x)))

    model, x = nn.Sequential(Layer(), Layer()), torch.randn(3, 16)
    (graph,) = capture(model, x)
    gm = graph.find()
    assert [p.place for p in graph.of("neuron")] == ["0.up.weight", "1.up.weight"]
    assert [p.place for p in graph.of("residual")] == ["0.up.weight", "1.up.weight"]
    with torch.no_grad():
        assert torch.equal(gm(*graph.arguments())[0], model(x))
