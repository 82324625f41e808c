"""The ops inside graphs that Inductor compiles: results, counters that a call adds to, changing thresholds and rows."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from srrc.backends.cpu import build

ops = torch.ops.srr
HIDDEN, NEURONS, HEADS = 32, 48, 4


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    build.ensure_built()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Layer(torch.nn.Module):
    """A layer made of every op: attention over a cache, then an MLP, all gates in place."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated

        def weight(n: int, k: int) -> Tensor:
            return (torch.randn(n, k) * k**-0.5).t().contiguous().t()

        self.qkv = [weight(HIDDEN, HIDDEN) for _ in range(3)]
        self.out, self.gate, self.up = (
            weight(HIDDEN, HIDDEN),
            weight(NEURONS, HIDDEN),
            weight(NEURONS, HIDDEN),
        )
        self.down = weight(HIDDEN, NEURONS)
        self.norm, self.neuron_norm = torch.rand(HIDDEN), torch.rand(NEURONS)
        self.channel_gate, self.mlp_gates = (
            torch.tensor([0.3, 0.0]),
            torch.tensor([[0.2, 0.0], [0.02, 0.0], [0.01, 0.0]]),
        )
        self.channel_counts, self.mlp_counts = (torch.zeros(*s, dtype=torch.int64) for s in ((3,), (3, 3)))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        x = x * 2  # [rows, HIDDEN]
        if self.gated:
            joined = ops.channel_linear(
                x, self.qkv, [None] * 3, self.norm, self.channel_gate, self.channel_counts
            )
            q, k, v = joined.split(HIDDEN, -1)
        else:
            q, k, v = ops.dense_linear(x, self.qkv, [None] * 3)
        shape = (1, x.shape[0], HEADS, HIDDEN // HEADS)
        keys = torch.cat((keys, k.view(shape).transpose(1, 2)), 2)
        values = torch.cat((values, v.view(shape).transpose(1, 2)), 2)
        attended = ops.decode_attention(q.view(shape).transpose(1, 2), keys, values, None, 0.3, False)
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = x + ops.dense_linear(attended, [self.out], [None])[0].relu()
        mlp = (x, self.gate, None, self.up, None, self.down, None, "silu")
        if not self.gated:
            return x + ops.dense_mlp(*mlp)
        norms = (self.norm, self.neuron_norm, self.neuron_norm)
        return x + ops.neuron_mlp(*mlp, *norms, self.mlp_gates, self.mlp_counts)

    def counts(self) -> list[int]:
        return [*self.channel_counts.tolist(), *self.mlp_counts.flatten().tolist()]


def arguments(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    cache = torch.randn(2, 1, HEADS, 5, HIDDEN // HEADS)
    return torch.randn(rows, HIDDEN), cache[0], cache[1]


@pytest.mark.parametrize("gated", [False, True])
def test_compiled_equals_eager_and_counts_alike(gated: bool) -> None:
    layer = Layer(gated=gated)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (1, 3, 11):
            args = arguments(rows)
            before = layer.counts()
            expected = layer(*args)
            eager = [after - b for b, after in zip(before, layer.counts(), strict=True)]
            before = layer.counts()
            torch.testing.assert_close(compiled(*args), expected)
            assert [after - b for b, after in zip(before, layer.counts(), strict=True)] == eager
            assert any(eager) == gated


def test_a_new_threshold_compiles_nothing() -> None:
    layer = Layer(gated=True)
    compiled = torch.compile(layer, fullgraph=True)
    args = arguments(1)
    with torch.no_grad():
        compiled(*args)
        kept = layer.channel_counts[1].item()
        layer.channel_gate[0] = -1.0
        with torch.compiler.set_stance("fail_on_recompile"):
            y = compiled(*args)
        assert layer.channel_counts[1].item() == kept + HIDDEN
        torch.testing.assert_close(y, layer(*args))


def test_gradients_flow_through_a_compiled_graph() -> None:
    layer = Layer(gated=True)
    x, keys, values = arguments(2)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(layer(x, keys, values).square().sum(), x)
    (found,) = torch.autograd.grad(torch.compile(layer, fullgraph=True)(x, keys, values).square().sum(), x)
    torch.testing.assert_close(found, expected)
