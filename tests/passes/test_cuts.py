"""Where regions end: at the beginning of the residual stream, and where each branch joins it."""

import torch
from torch import Tensor, nn

from srrc.passes.cuts import region_cuts
from srrc.passes.partition import partition


class Layers(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(number))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_regions_end_at_the_stream_and_after_each_branch(capture) -> None:
    (graph,) = capture(Layers(3), torch.randn(2, 4))
    gm = graph.find()
    cuts = region_cuts(gm.graph, graph.context.pathways)
    adds = [pathway.site.add for pathway in graph.of("residual")]
    assert set(adds) <= set(cuts)
    (begin,) = set(cuts) - set(adds)
    assert begin.name == "relu" or "relu" in str(begin.target)
    regions = partition(gm, cuts)
    assert len(regions) == 5
    assert len({region.key for region in regions[1:4]}) == 1


def test_no_branches_no_cuts(capture) -> None:
    (graph,) = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 4))
    gm = graph.find()
    assert region_cuts(gm.graph, graph.context.pathways) == []


def test_cuts_are_nodes_that_are_still_there(capture) -> None:
    """A pass may have replaced the sum that a branch goes into."""
    (graph,) = capture(Layers(2), torch.randn(2, 4))
    gm = graph.find()
    first = graph.of("residual")[0].site.add
    with gm.graph.inserting_after(first):
        other = gm.graph.call_function(torch.add, first.args)
    first.replace_all_uses_with(other)
    gm.graph.erase_node(first)
    cuts = region_cuts(gm.graph, graph.context.pathways)
    assert first not in cuts
    assert set(cuts) <= set(gm.graph.nodes)
    assert cuts


class Parallel(nn.Module):
    """Both branches read the stream, and are added to each other before they join it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.one = nn.ModuleList(nn.Linear(8, 8) for _ in range(number))
        self.two = nn.ModuleList(nn.Linear(8, 8) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        for one, two in zip(self.one, self.two, strict=True):
            x = (one(x).tanh() + two(x).relu()) + x
        return x.cos()


def test_parallel_branches_end_with_their_whole_sum(capture) -> None:
    (graph,) = capture(Parallel(3), torch.randn(2, 8))
    gm = graph.find()
    assert len(graph.of("residual")) == 6
    regions = partition(gm, region_cuts(gm.graph, graph.context.pathways))
    assert len(regions) == 5
    assert len({region.key for region in regions[1:4]}) == 1
