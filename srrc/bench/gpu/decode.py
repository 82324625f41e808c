"""Tokens a second of a decoder of Llama-3-8B's shapes with random weights: channel-sparse linears against Inductor.

One step is one CUDA graph: embedding, 32 layers, head, the best token. Both ways are compiled by Inductor a layer at a
time, cut where the residual stream has not yet taken up what a layer adds, so that nothing is left unfused; dense takes
the faster of Inductor's default and max-autotune. The sparse one skips channels of every linear, the head's too, by
thresholds: the quantiles of what the linear is given at this token, so that the fractions are exact. Random weights say
nothing about quality, and time does not depend on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from srrc.bench.gpu.decode_linears import Calibrating, Dense, Linears, Sparse
from srrc.bench.gpu.record import Check, Measurement, check, norm_check
from srrc.bench.gpu.sparse_linear import best_config
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
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linears, qkv, o, gate and up, down, and of the head."""
        wide = self.heads * self.head
        qkv = wide + 2 * self.kv_heads * self.head
        mlp = (self.hidden, 2 * self.neurons), (self.neurons, self.hidden)
        return [(self.hidden, qkv), (wide, self.hidden), *mlp, (self.hidden, self.vocabulary)]


Layer = Callable[..., tuple[Tensor, Tensor]]
Head = Callable[..., Tensor]


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


def make_layer(shape: Shape, linears: Linears) -> Layer:
    """(stream, what to add to it, weights, gates, keys, values, angles, position) -> the next two."""
    groups = shape.heads // shape.kv_heads
    sizes = [shape.heads * shape.head, shape.kv_heads * shape.head, shape.kv_heads * shape.head]

    def layer(
        stream: Tensor,
        added: Tensor,
        weights: list[Tensor],
        gates: list[Tensor],
        keys: Tensor,
        values: Tensor,
        angles: Tensor,
        position: Tensor,
    ) -> tuple[Tensor, Tensor]:
        stream, qkv = linears.normed(0, stream, added, weights[0], gates[0])
        q, k, v = torch.split_with_sizes(qkv, sizes, -1)
        q = _rotated(q.view(shape.kv_heads, groups, shape.head), angles)
        k = _rotated(k.view(shape.kv_heads, 1, shape.head), angles)
        keys.index_copy_(1, position, k)
        values.index_copy_(1, position, v.view(shape.kv_heads, 1, shape.head))
        # The queries that share keys stand where successive ones would: nothing is expanded. For so few of them two
        # products are quicker than any of SDPA's kernels.
        scores = (q @ keys.transpose(1, 2)).float() * shape.head**-0.5
        mixed = (scores.softmax(-1).to(q.dtype) @ values).reshape(1, -1)
        added = linears.plain(1, mixed, weights[1], gates[1])
        stream, gate_up = linears.normed(2, stream, added, weights[2], gates[2])
        return stream, linears.glu(3, gate_up, weights[3], gates[3])

    return layer


def make_head(linears: Linears) -> Head:
    """(stream, what to add to it, weight, gate) -> logits."""

    def head(stream: Tensor, added: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        return linears.normed(4, stream, added, weight, gate)[1]

    return head


@dataclass(frozen=True, eq=False)
class Model:
    """Weights by row or by input, a cache that is full, and a token that each step replaces.

    head: its weight, and its gate
    """

    shape: Shape
    weights: list[list[Tensor]]
    gates: list[list[Tensor]]
    head: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    embedding: Tensor
    token: Tensor
    position: Tensor

    def step(self, layer: Layer, head: Head, angles: Tensor) -> Tensor:
        """Decode one token; logits [1, V]."""
        stream = self.embedding[self.token]
        added = torch.zeros_like(stream)
        for i, (weights, gates) in enumerate(zip(self.weights, self.gates, strict=True)):
            cache = self.keys[i], self.values[i]
            stream, added = layer(stream, added, weights, gates, *cache, angles, self.position)
        logits = head(stream, added, *self.head)
        self.token.copy_(logits.argmax(-1))
        return logits


def make_model(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Model:
    """A random model, its layers' weights by row."""
    torch.manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.empty(*size, dtype=dtype, device="cuda").normal_(std=size[-1] ** -0.5)

    def cache() -> list[Tensor]:
        size = (shape.kv_heads, shape.positions, shape.head)
        return [torch.randn(size, dtype=dtype, device="cuda") for _ in range(shape.layers)]

    def gate() -> Tensor:
        return torch.tensor([-1.0, 0.0], device="cuda")

    return Model(
        shape,
        [[random(n, k) for k, n in shape.linears[:4]] for _ in range(shape.layers)],
        [[gate() for _ in range(4)] for _ in range(shape.layers)],
        [random(shape.vocabulary, shape.hidden), gate()],
        cache(),
        cache(),
        torch.randn(shape.vocabulary, shape.hidden, dtype=dtype, device="cuda"),
        torch.zeros(1, dtype=torch.int64, device="cuda"),
        torch.full((1,), shape.positions - 1, device="cuda"),
    )


def checks() -> Iterator[Check]:
    """The sparse step against the dense one with the same channels left out, for a small model."""
    shape = Shape(
        layers=2, hidden=512, heads=8, kv_heads=2, head=64, neurons=1024, vocabulary=1000, positions=64
    )
    # Where rounding can move a value across its threshold, the two would leave out different channels.
    model = make_model(shape, torch.float32)
    angles = _angles(shape)
    calibrating = Calibrating(0.5)
    truth = _again(model, make_layer(shape, calibrating), make_head(calibrating), angles)
    _by_input(model)
    sparse = Sparse(shape.linears, {}, torch.float32)
    layer, head = make_layer(shape, sparse), make_head(sparse)
    yield norm_check(NAME, "half of the channels", _again(model, layer, head, angles), truth, 1e-4)
    yield _skipped("half of the channels", sparse, 0.5, 0.002)
    found = _again(model, torch.compile(layer), torch.compile(head), angles)
    yield norm_check(NAME, "half of the channels, compiled", found, truth, 1e-4)
    yield _skipped("half of the channels, compiled", sparse, 0.5, 0.002)
    yield from _compiled_brain(shape, angles)


def _compiled_brain(shape: Shape, angles: Tensor) -> Iterator[Check]:
    """In bf16, where a value may move across its threshold: with all channels at first."""
    for dropped in (0.0, 0.5):
        torch.compiler.reset()
        model, calibrating = make_model(shape, torch.bfloat16), Calibrating(dropped)
        truth = _again(model, make_layer(shape, calibrating), make_head(calibrating), angles)
        _by_input(model)
        sparse = Sparse(shape.linears, {})
        layer, head = torch.compile(make_layer(shape, sparse)), torch.compile(make_head(sparse))
        found, case = _again(model, layer, head, angles), f"bf16, compiled, {dropped:.0%} skipped"
        if dropped == 0:
            yield check(NAME, case, found, truth, slack=4)
        else:
            yield norm_check(
                NAME, case, found, truth, 0.3
            )  # a channel that moves counts for much in a small model
        yield _skipped(case, sparse, dropped, 0.03)


def _skipped(case: str, sparse: Sparse, dropped: float, allowed: float) -> Check:
    """Whether each linear left out the channels that it was to."""
    error = max(abs(found - dropped) for found in sparse.skipped())
    return Check(NAME, f"{case}, counted", error, allowed)


def _angles(shape: Shape) -> Tensor:
    rates = 500000.0 ** -(torch.arange(0, shape.head, 2, device="cuda") / shape.head)
    return (shape.positions - 1) * rates


def _by_input(model: Model) -> None:
    """Lay out every weight by input, one at a time."""
    for weights in (*model.weights, model.head):
        for i, weight in enumerate(weights[:4]):
            if weight.dim() == 2:
                weights[i] = weight.t().contiguous().t()


def measurements() -> Iterator[Measurement | Check]:
    """Dense by both of Inductor's settings, then sparse at 0, 25, 50 and 65% of each linear's channels skipped."""
    shape = Shape()
    model = make_model(shape)
    angles = _angles(shape)
    head = shape.linears[4]
    read = 2.0 * (sum(k * n for k, n in shape.linears[:4]) * shape.layers + head[0] * head[1])
    rest = 2.0 * sum(t.numel() for t in (*model.keys, *model.values))
    dense = {}
    for name, mode in (("Inductor", None), ("Inductor, max-autotune", "max-autotune-no-cudagraphs")):
        torch.compiler.reset()
        layer: Layer = torch.compile(make_layer(shape, Dense()), mode=mode)
        last: Head = torch.compile(make_head(Dense()), mode=mode)
        dense[name] = milliseconds([partial(_again, model, layer, last, angles)])
    yield Measurement(NAME, "8B, dense", min(dense.values()), dense, read + rest)
    levels = {dropped: _thresholds(model, dropped, angles) for dropped in (0.0, 0.25, 0.5, 0.65)}
    _by_input(model)
    torch.compiler.reset()
    several = {shape.linears[i]: [weights[i] for weights in model.weights[:8]] for i in range(4)}
    sparse = Sparse(shape.linears, {size: best_config(weights, 1) for size, weights in several.items()})
    layer, last = torch.compile(make_layer(shape, sparse)), torch.compile(make_head(sparse))
    for dropped, level in levels.items():
        for gate, value in zip((*chain(*model.gates), model.head[1]), level, strict=True):
            gate.copy_(value)
        ms = milliseconds([partial(_again, model, layer, last, angles)])
        yield _skipped(f"8B, {dropped:.0%} skipped", sparse, dropped, 0.03)
        yield Measurement(NAME, f"8B, {dropped:.0%} skipped", ms, dense, (1 - dropped) * read + rest)


def _thresholds(model: Model, dropped: float, angles: Tensor) -> list[Tensor]:
    calibrating = Calibrating(dropped)
    _again(model, make_layer(model.shape, calibrating), make_head(calibrating), angles)
    return [gate.clone() for gate in (*chain(*model.gates), model.head[1])]


def _again(model: Model, layer: Layer, head: Head, angles: Tensor) -> Tensor:
    """The same token each time: the one that thresholds were taken from."""
    with torch.no_grad():
        model.token.zero_()
        return model.step(layer, head, angles)
