"""Attention: as one call and written out, with grouped heads, caps and masks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.passes.annotate_cost import captured_sizes


class Attend(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.query, self.keys = nn.Linear(16, 16), nn.Linear(16, 8)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, 4, 4).transpose(1, 2)
        k = self.keys(x).view(batch, length, 2, 4).transpose(1, 2)
        return self.call(q, k)


def _repeat(x: Tensor, times: int = 2) -> Tensor:
    batch, heads, length, depth = x.shape
    x = x[:, :, None].expand(batch, heads, times, length, depth)
    return x.reshape(batch, heads * times, length, depth)


def _eager(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.matmul(q, _repeat(k).transpose(2, 3)) * 0.25
    scores = 20.0 * torch.tanh(scores / 20.0)
    scores = scores + torch.ones(q.shape[2], q.shape[2]).tril().log()
    weights = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), 0.1, False)
    return torch.matmul(weights, _repeat(k))


def _tile(x: Tensor, times: int = 2) -> Tensor:
    batch, heads, length, depth = x.shape
    return x[:, None].expand(batch, times, heads, length, depth).reshape(batch, times * heads, length, depth)


CALLS = {
    "gqa": lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True),
    "repeated": lambda q, k: F.scaled_dot_product_attention(q, _repeat(k), _repeat(k), is_causal=True),
    "eager": _eager,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_grouped_heads_are_seen_however_they_are_written(call: str, dynamic: bool, capture) -> None:
    (graph,) = capture(Attend(CALLS[call]), torch.randn(3, 7, 16), dynamic=dynamic)
    graph.find()
    (pathway,) = graph.of("attention")
    site = pathway.site
    assert (pathway.place, pathway.units, site.groups) == ("query.weight", 4, 2)
    assert graph.view(graph.gm).tensor(site.k_base).shape[1] == 2
    assert (site.softcap, site.scale) == ((20.0, 0.25) if call == "eager" else (None, None))
    assert site.is_causal is (call != "eager")
    assert (site.mask is not None) is (call == "eager")
    sizes = captured_sizes(graph.gm.graph)
    assert len(pathway.cost.symbols) == (2 if dynamic else 0)
    assert pathway.cost.at(sizes)[0] == 2 * 3 * 4 * 7 * 7 * (4 + 4)


def test_tiled_heads_are_not_repeated_ones(capture) -> None:
    """Head 1 of four tiled ones is the second of two, where repetition would make it the first again."""
    call = lambda q, k: F.scaled_dot_product_attention(q, _tile(k), _tile(k))  # noqa: E731
    (graph,) = capture(Attend(call), torch.randn(3, 7, 16))
    graph.find()
    site = graph.of("attention")[0].site
    assert site.groups == 1
    assert site.k_base is site.k


def test_values_may_be_narrower_than_keys(capture) -> None:
    call = lambda q, k: F.scaled_dot_product_attention(q, _repeat(k), _repeat(k)[..., :3])  # noqa: E731
    (graph,) = capture(Attend(call), torch.randn(3, 7, 16))
    graph.find()
    assert graph.of("attention")[0].cost.flops == 2 * 3 * 4 * 7 * 7 * (4 + 3)


def _late_write(q: Tensor, k: Tensor) -> Tensor:
    copies = _repeat(k)
    k.mul_(2)
    return F.scaled_dot_product_attention(q, copies, copies)


def test_keys_that_change_after_they_were_copied_are_not_looked_through(capture) -> None:
    (graph,) = capture(Attend(_late_write), torch.randn(3, 7, 16))
    graph.find()
    site = graph.of("attention")[0].site
    assert site.groups == 1
    assert site.k_base is site.k


def test_a_softmax_between_other_products_is_no_attention(capture) -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(16, 4)

        def forward(self, x: Tensor, experts: Tensor) -> Tensor:
            return torch.matmul(torch.softmax(self.router(x), -1), experts)

    (graph,) = capture(Mixture(), torch.randn(3, 16), torch.randn(4, 16))
    graph.find()
    assert graph.of("attention") == []


def test_heads_without_a_dimension_are_refused(capture) -> None:
    class Single(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(super().forward(x), x, x)

    (graph,) = capture(Single(16, 16), torch.randn(3, 7, 16))
    graph.find()
    assert graph.of("attention") == []
    assert graph.refused("attention") == [("weight", "UNSUPPORTED_SHAPE")]
