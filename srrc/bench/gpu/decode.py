"""Tokens a second of a decoder of Llama-3-8B's shapes with random weights: channel-sparse linears against Inductor.

One step is one CUDA graph: embedding, 32 layers, head, the best token. Both ways are compiled by Inductor a layer at a
time, cut where the residual stream has not yet taken up what a layer adds, so that nothing is left unfused; dense takes
the faster of Inductor's default and max-autotune. The gates of the sparse one are Inductor's too: a comparison, fused
into the norm or activation before each linear. A channel's threshold is the quantile of what the linear is given at
this token, so that the fractions are exact; random weights say nothing about quality, and time does not depend on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.backends.triton.kernels.sparse_linear import (
    Config,
    Workspace,
    default_config,
    sparse_linear,
    workspace,
)
from srrc.bench.gpu.record import Check, Measurement
from srrc.bench.gpu.timing import milliseconds

NAME = "decode"


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, and how many positions its cache holds."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    neurons: int = 14336
    vocabulary: int = 128256
    positions: int = 1024

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's linears: qkv, o, gate and up, down."""
        wide = self.heads * self.head
        qkv = wide + 2 * self.kv_heads * self.head
        return (
            (self.hidden, qkv),
            (wide, self.hidden),
            (self.hidden, 2 * self.neurons),
            (self.neurons, self.hidden),
        )


Linear = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(which of the four, x, weight, threshold) -> its product."""


def _norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


def make_layer(shape: Shape, linear: Linear) -> Callable[..., tuple[Tensor, Tensor]]:
    """(stream, what to add to it, weights, thresholds, cache, angles, position) -> the next two."""
    groups = shape.heads // shape.kv_heads
    sizes = [shape.heads * shape.head, shape.kv_heads * shape.head, shape.kv_heads * shape.head]

    def layer(
        stream: Tensor,
        added: Tensor,
        weights: list[Tensor],
        thresholds: list[Tensor],
        cache: Tensor,
        angles: Tensor,
        position: Tensor,
    ) -> tuple[Tensor, Tensor]:
        stream = stream + added
        q, k, v = linear(0, _norm(stream), weights[0], thresholds[0]).split(sizes, -1)
        q = _rotated(q.view(shape.kv_heads, groups, shape.head), angles)
        k = _rotated(k.view(shape.kv_heads, 1, shape.head), angles)
        cache[0].index_copy_(1, position, k)
        cache[1].index_copy_(1, position, v.view(shape.kv_heads, 1, shape.head))
        # The queries that share keys take the place of successive ones: no mask, and nothing is expanded.
        mixed = F.scaled_dot_product_attention(q[None], cache[0][None], cache[1][None])
        stream = stream + linear(1, mixed.reshape(1, -1), weights[1], thresholds[1])
        gate, up = linear(2, _norm(stream), weights[2], thresholds[2]).chunk(2, -1)
        return stream, linear(3, F.silu(gate) * up, weights[3], thresholds[3])

    return layer


@dataclass(frozen=True, eq=False)
class Model:
    """Weights by row or by input, a cache that is full, and a token that each step replaces."""

    shape: Shape
    weights: list[list[Tensor]]
    thresholds: list[list[Tensor]]
    cache: Tensor
    head: Tensor
    embedding: Tensor
    token: Tensor
    position: Tensor

    def step(self, layer: Callable[..., tuple[Tensor, Tensor]], angles: Tensor) -> Tensor:
        """Decode one token; logits [1, V]."""
        stream = self.embedding[self.token]
        added = torch.zeros_like(stream)
        for i, (weights, thresholds) in enumerate(zip(self.weights, self.thresholds, strict=True)):
            stream, added = layer(stream, added, weights, thresholds, self.cache[i], angles, self.position)
        logits = F.linear(_norm(stream + added), self.head)
        self.token.copy_(logits.argmax(-1))
        return logits


def make_model(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Model:
    """A random model, its layers' weights by row."""
    torch.manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.empty(*size, dtype=dtype, device="cuda").normal_(std=size[-1] ** -0.5)

    cache = torch.randn(
        shape.layers, 2, shape.kv_heads, shape.positions, shape.head, dtype=dtype, device="cuda"
    )
    return Model(
        shape,
        [[random(n, k) for k, n in shape.linears] for _ in range(shape.layers)],
        [[torch.full((), -1.0, device="cuda") for _ in shape.linears] for _ in range(shape.layers)],
        cache,
        random(shape.vocabulary, shape.hidden),
        torch.randn(shape.vocabulary, shape.hidden, dtype=dtype, device="cuda"),
        torch.zeros(1, dtype=torch.int64, device="cuda"),
        torch.full((1,), shape.positions - 1, device="cuda"),
    )


def dense_linear(which: int, x: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    """What is measured against."""
    return F.linear(x, weight)


def calibrating_linear(dropped: float) -> Linear:
    """Sets each threshold to the quantile of what the linear is given, and leaves that out."""

    def linear(which: int, x: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
        if dropped > 0:
            threshold.copy_(x.abs().float().sort().values[0, round(dropped * x.shape[-1]) - 1])
        else:
            threshold.fill_(-1.0)
        return F.linear(torch.where(x.abs() > threshold, x, 0.0), weight)

    return linear


def sparse_layer_linear(spaces: list[Workspace], tuned: list[Config]) -> Linear:
    """Drops what is below the threshold, and reads the rest; the workspaces serve all layers, which run in turn."""
    ops = [_op(i, config) for i, config in enumerate(tuned)]

    def linear(which: int, x: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
        kept = torch.where(x.abs() > threshold, x, 0.0)
        space = spaces[which]
        found: Tensor = ops[which](kept, weight, space.parts, space.arrived)
        return found

    return linear


def _op(which: int, config: Config) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, parts: Tensor, arrived: Tensor) -> Tensor:
        return sparse_linear(x, weight, config=config, space=Workspace(parts, arrived))

    def fake(x: Tensor, weight: Tensor, parts: Tensor, arrived: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    op = torch.library.custom_op(f"srr_bench::sparse_{which}", run, mutates_args=("parts", "arrived"))
    op.register_fake(fake)
    return op


def checks() -> Iterator[Check]:
    """The sparse step against the dense one with the same channels left out, for a small model."""
    shape = Shape(
        layers=2, hidden=512, heads=8, kv_heads=2, head=64, neurons=1024, vocabulary=1000, positions=64
    )
    model = make_model(shape)
    angles = _angles(shape)
    truth = model.step(make_layer(shape, calibrating_linear(0.5)), angles)
    model.token.zero_()
    tuned, spaces = _prepare(shape, {})
    _by_input(model)
    found = model.step(make_layer(shape, sparse_layer_linear(spaces, tuned)), angles)
    error = float((found.double() - truth.double()).norm() / truth.double().norm())
    yield Check(NAME, "two layers, half of the channels", error, 3e-2)


def _angles(shape: Shape) -> Tensor:
    rates = 500000.0 ** -(torch.arange(0, shape.head, 2, device="cuda") / shape.head)
    return (shape.positions - 1) * rates


def _by_input(model: Model) -> None:
    for weights in model.weights:
        for i, weight in enumerate(weights):
            weights[i] = weight.t().contiguous().t()


def _prepare(shape: Shape, found: dict[tuple[int, int], Config]) -> tuple[list[Config], list[Workspace]]:
    tuned, spaces = [], []
    for inputs, outputs in shape.linears:
        x = torch.empty(1, inputs, dtype=torch.bfloat16, device="cuda")
        tuned.append(found.get((inputs, outputs)) or default_config(x, outputs))
        spaces.append(workspace(x, outputs, tuned[-1]))
    return tuned, spaces


def measurements(found: dict[tuple[int, int], Config] | None = None) -> Iterator[Measurement]:
    """Dense by both of Inductor's settings, then sparse at 0, 25, 50 and 65% of each linear's channels skipped.

    found: the best configuration by (inputs, outputs), where one was measured
    """
    shape = Shape()
    model = make_model(shape)
    angles = _angles(shape)
    read = 2.0 * sum(k * n for k, n in shape.linears) * shape.layers
    rest = 2.0 * shape.vocabulary * shape.hidden + model.cache.numel() * 2.0
    dense = {}
    for name, mode in (("inductor", None), ("inductor, max-autotune", "max-autotune-no-cudagraphs")):
        torch.compiler.reset()
        layer = torch.compile(make_layer(shape, dense_linear), mode=mode)
        with torch.no_grad():
            dense[name] = milliseconds([lambda layer=layer: model.step(layer, angles)], times=2)
    yield Measurement(NAME, "8B, dense", min(dense.values()), dense, read + rest)
    thresholds = {}
    for dropped in (0.0, 0.25, 0.5, 0.65):
        model.token.zero_()
        with torch.no_grad():
            model.step(make_layer(shape, calibrating_linear(dropped)), angles)
        thresholds[dropped] = [[t.clone() for t in layer_thresholds] for layer_thresholds in model.thresholds]
    _by_input(model)
    torch.compiler.reset()
    tuned, spaces = _prepare(shape, found or {})
    layer = torch.compile(make_layer(shape, sparse_layer_linear(spaces, tuned)))
    for dropped, chosen in thresholds.items():
        for target, source in zip(model.thresholds, chosen, strict=True):
            for t, s in zip(target, source, strict=True):
                t.copy_(s)
        with torch.no_grad():
            ms = milliseconds([lambda: _again(model, layer, angles)], times=2)
        yield Measurement(NAME, f"8B, {dropped:.0%} skipped", ms, dense, (1 - dropped) * read + rest)


def _again(model: Model, layer: Callable[..., tuple[Tensor, Tensor]], angles: Tensor) -> Tensor:
    """The same token each time: the one that thresholds were taken from."""
    model.token.zero_()
    return model.step(layer, angles)
