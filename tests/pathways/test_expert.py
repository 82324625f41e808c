"""Experts: what is read of a mixture, and what is turned down."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.models_zoo import families


@torch.library.custom_op("srrc_test::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    ends = [0, *offs.tolist()]
    return torch.cat([x[a:b] @ weight[i] for i, (a, b) in enumerate(pairwise(ends))])


@grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[-1])


class Mixture(nn.Module):
    def __init__(self, act=F.silu, route: bool = True) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.first = nn.Parameter(torch.randn(4, 64, 16))
        self.second = nn.Parameter(torch.randn(4, 16, 32))
        self.act, self.route = act, route

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        chosen = torch.topk(scores, 1).indices[:, 0] if self.route else scores.argmax(-1)
        order = torch.argsort(chosen)
        ends = torch.cumsum((chosen[:, None] == torch.arange(4)).sum(0), 0)
        gate, up = grouped_mm(x[order], self.first.transpose(-2, -1), ends).chunk(2, -1)
        out = grouped_mm(self.act(gate) * up, self.second.transpose(-2, -1), ends)
        return torch.zeros_like(x).index_copy(0, order, out)


def test_a_mixture_is_read_in_full(capture) -> None:
    (graph,) = capture(Mixture(), torch.randn(6, 16))
    graph.find()
    (pathway,) = graph.of("expert")
    site = pathway.site
    assert (pathway.place, pathway.weights) == ("first", ("first", "second"))
    assert (site.experts, site.top_k, site.gated, site.activation) == (4, 1, True, "silu")
    assert site.router.fqn == "router.weight"
    assert pathway.units == 4
    assert pathway.cost.flops == 2 * 6 * (16 * 64 + 32 * 16)


def test_what_is_no_mixture_is_refused(capture) -> None:
    for model, reason in (
        (Mixture(act=torch.tanh), "UNKNOWN_ACTIVATION"),
        (Mixture(act=lambda x: x * 2), "UNKNOWN_STRUCTURE"),
        (Mixture(route=False), "UNKNOWN_STRUCTURE"),
    ):
        (graph,) = capture(model, torch.randn(6, 16))
        graph.find()
        assert graph.of("expert") == []
        assert {name for _, name in graph.refused("expert")} == {reason}


def test_a_matrix_for_every_row_is_refused(capture) -> None:
    tiny = families.tiny("mixtral")
    tiny.model.set_experts_implementation("batched_mm")
    (graph,) = capture(tiny.model, **tiny.inputs(2, 4))
    graph.find()
    assert graph.of("expert") == []
    assert {name for _, name in graph.refused("expert")} == {"UNKNOWN_STRUCTURE"}
    assert len(graph.refused("expert")) == 4
