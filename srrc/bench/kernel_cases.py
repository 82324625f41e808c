"""What `srrc.bench.kernels` measures: each op at the shapes of SmolLM2-135M, MLPs at those of larger models too.

Each case is a list of calls that together walk once over a pool of memory, so that no weight is still in a
cache when its turn comes again; the same calls exist for torch's own function.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.coarse_copy import coarse_copy

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 576, 1536, 9, 3, 64, 49152
MLPS = ((HIDDEN, INTERMEDIATE), (2048, 8192), (4096, 11008))
"""Widths of MLPs: SmolLM2-135M's, and those of models of 1 and 7 billion parameters, where the pool holds one."""

ops = torch.ops.srr

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One line of the table. `passes` calls read `bytes_read` bytes in all."""

    op: str
    what: str
    calls: list[Call]
    baseline: list[Call]
    bytes_read: float


@dataclass(frozen=True)
class Pool:
    """Random values to cut weights from. values: [n], of the dtype that is measured."""

    values: Tensor
    rows: int

    def x(self, width: int) -> Tensor:
        """Inputs [rows, width]; each row is a permutation of the same magnitudes 1/width..1."""
        magnitudes = torch.arange(1, width + 1) / width
        rows = [magnitudes[torch.randperm(width)] for _ in range(self.rows)]
        return torch.stack(rows).to(self.values.dtype)

    def weights(self, *shapes: tuple[int, int]) -> list[list[Tensor]]:
        """As many sets of weights [n, k] of these shapes as the pool holds, row-major, one after another."""
        size = sum(n * k for n, k in shapes)
        sets: list[list[Tensor]] = []
        for start in range(0, self.values.numel() - size + 1, size):
            at, one = start, []
            for n, k in shapes:
                one.append(self.values[at : at + n * k].view(n, k))
                at += n * k
            sets.append(one)
        return sets

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.values.element_size()


def input_major(weight: Tensor) -> Tensor:
    """The same memory read as an input-major weight of the same shape."""
    n, k = weight.shape
    return weight.view(k, n).t()


def _of_input(skipped: float) -> float:
    """The threshold of a gate on `Pool.x` that skips this share; -1, an open gate, for none."""
    # Magnitudes are multiples of 1 / width: half a step under the first one that stays.
    return skipped + 1e-4 if skipped else -1.0


def _records(*thresholds: float) -> Tensor:
    """A record for each gate, [gates, 2], none with a guard."""
    return torch.tensor([[threshold, 0.0] for threshold in thresholds])


def linear_cases(pool: Pool) -> Iterator[Case]:
    """dense_linear and channel_linear beside F.linear."""
    for n, k in ((HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE), (VOCAB, HIDDEN)):
        weights = [w for (w,) in pool.weights((n, k))]
        if not weights:  # a small pool holds no vocabulary
            continue
        x = pool.x(k)
        torch_calls: list[Call] = [partial(F.linear, x, w) for w in weights]
        total = len(weights) * n * k * pool.item
        rows: list[Call] = [partial(ops.dense_linear, x, [w], [None]) for w in weights]
        yield Case("dense_linear", f"[{n}, {k}] row-major", rows, torch_calls, total)
        if n == VOCAB:
            continue
        turned = [input_major(w) for w in weights]
        columns: list[Call] = [partial(ops.dense_linear, x, [w], [None]) for w in turned]
        yield Case("dense_linear", f"[{n}, {k}] input-major", columns, torch_calls, total)
        norm, counters = torch.ones(k), torch.zeros(3, dtype=torch.int64)
        for skipped in (0.0, 0.25, 0.5, 0.75):
            gate = _records(_of_input(skipped))[0]
            gated: list[Call] = [
                partial(ops.channel_linear, x, [w], [None], norm, gate, counters) for w in turned
            ]
            read = total * (1 - skipped if pool.rows == 1 else 1)
            yield Case("channel_linear", f"[{n}, {k}] {skipped:.0%} skipped", gated, torch_calls, read)


def _eager_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def mlp_cases(pool: Pool) -> Iterator[Case]:
    """dense_mlp and neuron_mlp beside eager's MLP."""
    for hidden, intermediate in MLPS:
        sets = pool.weights((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
        if sets:
            yield from _mlp_cases(pool, sets, hidden, intermediate)


def _mlp_cases(pool: Pool, sets: list[list[Tensor]], hidden: int, intermediate: int) -> Iterator[Case]:
    shape = f"[{intermediate}, {hidden}]"
    x = pool.x(hidden)
    total = len(sets) * 3 * intermediate * hidden * pool.item
    baseline: list[Call] = [partial(_eager_mlp, x, *s) for s in sets]

    def dense(gate: Tensor, up: Tensor, down: Tensor) -> Call:
        return partial(ops.dense_mlp, x, gate, None, up, None, down, None, "silu")

    yield Case("dense_mlp", f"{shape} row-major", [dense(*s) for s in sets], baseline, total)
    turned = [[input_major(w) for w in s] for s in sets]
    yield Case("dense_mlp", f"{shape} input-major", [dense(*s) for s in turned], baseline, total)
    channels, neurons = torch.ones(hidden), torch.ones(intermediate)
    counters = torch.zeros(3, 3, dtype=torch.int64)

    def gated(gate: Tensor, up: Tensor, down: Tensor, records: Tensor) -> Call:
        norms = (channels, neurons, neurons)
        return partial(ops.neuron_mlp, x, gate, None, up, None, down, None, "silu", *norms, records, counters)

    gate, up, _ = sets[0]
    active = F.silu(F.linear(x, gate))
    values = active * F.linear(x, up)
    for skipped in (0.0, 0.2, 0.4, 0.5, 0.6):
        read = total * (1 - skipped if pool.rows == 1 else 1)
        # The input gate skips rows of `gate`, the neuron gate rows of `up` (row-major) and of `down`.
        records = _records(_of_input(skipped), _threshold(active, skipped), -1.0)
        calls = [gated(input_major(g), u, input_major(d), records) for g, u, d in sets]
        yield Case("neuron_mlp", f"{shape} {skipped:.0%}, neurons before up", calls, baseline, read)
        # The input gate skips rows of `gate` and `up`, the last gate rows of `down`.
        records = _records(_of_input(skipped), -1.0, _threshold(values, skipped))
        calls = [gated(g, u, d, records) for g, u, d in turned]
        yield Case("neuron_mlp", f"{shape} {skipped:.0%}, neurons after up", calls, baseline, read)


def _threshold(values: Tensor, share: float) -> float:
    """The threshold under which this share of |values| lies; -1, an open gate, for none."""
    flat = values.abs().float().flatten()
    return float(flat.kthvalue(max(1, int(share * flat.numel()))).values) if share else -1.0


def attention_cases(pool: Pool) -> Iterator[Case]:
    """decode_attention beside scaled_dot_product_attention, over a cache that is full or a quarter full."""
    for keys, seen in ((256, 256), (1024, 1024), (1024, 256)):
        size = KV_HEADS * keys * HEAD_DIM
        caches = pool.values[: pool.values.numel() // (2 * size) * 2 * size].view(
            -1, 2, 1, KV_HEADS, keys, HEAD_DIM
        )
        caches = caches[:256]
        q = pool.x(HEADS * HEAD_DIM).view(pool.rows, HEADS, 1, HEAD_DIM)
        if pool.rows > 1:
            caches = caches.expand(-1, -1, pool.rows, -1, -1, -1)
        mask = (torch.arange(keys) < seen).view(1, 1, 1, keys) if seen < keys else None
        scale = HEAD_DIM**-0.5
        ours: list[Call] = [partial(ops.decode_attention, q, c[0], c[1], mask, scale, False) for c in caches]
        eager: list[Call] = [
            partial(F.scaled_dot_product_attention, q, c[0], c[1], mask, enable_gqa=True) for c in caches
        ]
        read = len(caches) * 2 * KV_HEADS * seen * HEAD_DIM * pool.item
        yield Case("decode_attention", f"{seen} of {keys} keys", ours, eager, read)


def head_cases(pool: Pool) -> Iterator[Case]:
    """vocab_head with an int8 copy and 512 exact logits a row, beside F.linear."""
    weights = [w for (w,) in pool.weights((VOCAB, HIDDEN))]
    if not weights:
        return
    x = pool.x(HIDDEN)
    baseline: list[Call] = [partial(F.linear, x, w) for w in weights]
    exact, rotation = 512, torch.eye(HIDDEN)
    copies = [coarse_copy(w, None, rotation, torch.zeros(HIDDEN)) for w in weights]
    counters = torch.zeros(4, dtype=torch.int64)
    for skipped in (0.0, 0.5, 0.75):
        gate = _records(_of_input(skipped))[0]
        calls: list[Call] = [
            partial(
                ops.vocab_head,
                *(
                    x,
                    w,
                    None,
                    rotation,
                    torch.zeros(HIDDEN),
                    c.coarse,
                    c.scale,
                    c.bias,
                    torch.ones(HIDDEN),
                    gate,
                ),
                counters,
                exact,
            )
            for w, c in zip(weights, copies, strict=True)
        ]
        read: float = VOCAB * HIDDEN * pool.item
        if skipped:
            read = (
                VOCAB * HIDDEN * (1 - skipped if pool.rows == 1 else 1)
                + pool.rows * exact * HIDDEN * pool.item
            )
            read += HIDDEN * HIDDEN * 4
        yield Case("vocab_head", f"{skipped:.0%} of channels skipped", calls, baseline, len(weights) * read)


def all_cases(pool: Pool) -> Iterator[Case]:
    """Every case for one dtype and number of rows."""
    yield from linear_cases(pool)
    yield from mlp_cases(pool)
    yield from attention_cases(pool)
    yield from head_cases(pool)
