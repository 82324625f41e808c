"""MLPs: every activation by its name, every way of splitting a fused matrix, and what is turned down."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.reasons import Reason


class Plain(nn.Module):
    def __init__(self, act, wide: int = 48) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(16, wide), nn.Linear(wide, 16), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Fused(nn.Module):
    def __init__(self, cut) -> None:
        super().__init__()
        self.both, self.down, self.cut = nn.Linear(16, 96), nn.Linear(48, 16), cut

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.cut(self.both(x))
        return self.down(F.silu(gate) * up)


REFERENCE = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
WRITTEN = [
    ("silu", F.silu),
    ("silu", nn.SiLU(inplace=True)),
    ("silu", lambda x: x * torch.sigmoid(x)),
    ("silu", lambda x: x.sigmoid() * x),
    ("gelu", F.gelu),
    ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    ("gelu_tanh", nn.GELU("tanh")),
    (
        "gelu_tanh",
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
    ),
    (
        "gelu_tanh",
        lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    ),
    ("relu", torch.relu),
    ("relu", nn.ReLU(inplace=True)),
    ("relu", lambda x: x.relu_()),
    ("relu2", lambda x: F.relu(x) ** 2),
    ("relu2", lambda x: torch.square(F.relu(x))),
    ("relu2", lambda x: F.relu(x) * F.relu(x)),
    ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
]


@pytest.mark.parametrize(("name", "act"), WRITTEN, ids=[f"{n}-{i}" for i, (n, _) in enumerate(WRITTEN)])
def test_activations_are_named_for_what_they_compute(name: str, act, capture) -> None:
    x = torch.randn(2, 5, 16)
    (graph,) = capture(Plain(act), x)
    graph.find()
    (pathway,) = graph.of("neuron")
    assert pathway.site.activation == name
    assert pathway.units == 48
    values = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(REFERENCE[name](values), act(values.clone()))


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x * torch.sigmoid(1.6 * x),  # neither silu nor the quick GELU
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        lambda x: F.relu(x) ** 3,
        lambda x: x * torch.sigmoid(x + 1),
    ],
)
def test_formulas_that_are_nearly_an_activation_are_not_taken_for_it(act, capture) -> None:
    (graph,) = capture(Plain(act), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert len(graph.of("channel")) == 2


CUTS = {
    "chunk": lambda y: y.chunk(2, dim=-1),
    "split": lambda y: y.split(48, dim=-1),
    "split sizes": lambda y: torch.split(y, [48, 48], dim=2),
    "slices": lambda y: (y[..., :48], y[..., 48:]),
    "long slices": lambda y: (y[:, :, 0:48], y[:, :, 48:96]),
    "swapped": lambda y: y.chunk(2, dim=-1)[::-1],
}


@pytest.mark.parametrize("cut", CUTS)
def test_halves_of_a_fused_matrix(cut: str, capture) -> None:
    (graph,) = capture(Fused(CUTS[cut]), torch.randn(2, 5, 16))
    graph.find()
    (pathway,) = graph.of("neuron")
    site = pathway.site
    first, second = ((48, 96), (0, 48)) if cut == "swapped" else ((0, 48), (48, 96))
    assert (site.gate.rows, site.up.rows) == (first, second)
    assert site.gate.node is site.up.node
    assert (site.gate.out_features, site.gate.in_features) == (48, 16)
    assert pathway.weights == ("both.weight", "both.bias", "down.weight", "down.bias")
    # 2 (2 K N + N K) multiply-adds a row: the fused matrix counts once.
    assert pathway.cost.flops == 2 * 10 * (16 * 96 + 48 * 16)


def test_a_cut_along_another_dimension_is_no_half(capture) -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.down = nn.Linear(16, 48), nn.Linear(48, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.both(x).chunk(2, dim=1)
            return self.down(F.silu(gate) * up)

    (graph,) = capture(Across(), torch.randn(2, 6, 16))
    graph.find()
    assert graph.of("neuron") == []


def test_an_unknown_activation_is_refused_by_name(capture) -> None:
    (graph,) = capture(Plain(F.mish), torch.randn(2, 16))
    graph.find()
    (refusal,) = [r for r in graph.context.refusals if r.kind == "neuron"]
    assert (refusal.place, refusal.reason, refusal.detail) == ("up.weight", Reason.UNKNOWN_ACTIVATION, "mish")


def test_an_intermediate_value_that_is_handed_out_is_refused(capture) -> None:
    class Leaky(Plain):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.act(self.up(x))
            return self.down(h), h

    (graph,) = capture(Leaky(F.silu), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert graph.refused("neuron") == [("up.weight", "USED_ELSEWHERE")]


def test_a_computed_weight_is_refused(capture) -> None:
    class Scaled(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.act(self.up(x)), self.down.weight * 0.5)

    (graph,) = capture(Scaled(F.silu), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert graph.refused("neuron") == [("up.weight", "NOT_A_PARAMETER")]
    assert [reason for _, reason in graph.refused("channel")] == ["NOT_A_PARAMETER"]


def test_a_parameter_that_the_graph_writes_to_is_no_weight(capture) -> None:
    class Drifting(Plain):
        def forward(self, x: Tensor) -> Tensor:
            self.down.weight.mul_(0.99)
            return super().forward(x)

    (graph,) = capture(Drifting(F.silu), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert [p.place for p in graph.of("channel")] == ["up.weight"]


def test_an_input_that_is_overwritten_meanwhile_is_refused(capture) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate = F.silu(self.gate(x))
            x.mul_(2)
            return self.down(gate * self.up(x))

    (graph,) = capture(Moving(), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert graph.refused("neuron") == [("gate.weight", "WRITTEN_BETWEEN")]
    assert len(graph.of("channel")) == 3, "the two reads see different values and need a gate each"


def test_gates_of_different_inputs_are_no_gated_mlp(capture) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.down(F.silu(self.gate(x)) * self.up(y))

    (graph,) = capture(Two(), torch.randn(2, 16), torch.randn(2, 16))
    graph.find()
    assert graph.of("neuron") == []
    assert len(graph.of("channel")) == 3
