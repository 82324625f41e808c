"""Which units are kept, as a list for each block of units: what gates make, and what sparse kernels walk over.

A block's list holds the units that any row keeps, in order, and then the others. No program waits for another to make
them, and the same input gives the same lists. The guard (min_kept of a gate record, `srrc.ops.gate`) needs the counts
of all blocks: a consumer adds them up itself (`guard_failed`), or takes the counts that `guarded` makes. Since a list
goes on with what was dropped, it is whole as it stands where the guard failed. One consumer of a gate's lists tells its
counters (`count_kept`): int64 (offered, executed, guard_failed).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from srrc.backends.triton.ahead import Ahead


@dataclass(frozen=True)
class Kept:
    """What was kept, before the guard.

    units:  int32 [blocks, block], the units of each block: those kept by any row, in order, then the others
    counts: int32 [blocks], how many of them are kept
    rows:   int32 [B, blocks], the same of each row alone
    arrived: int32 [blocks * block], zeros for the programs of a consumer to count themselves by, left as zeros again
    count:  how many units there are; the last block may have fewer than the others
    offered: int32 [blocks], how many of them an earlier gate left, where there is one: the guard's fraction is of those
    """

    units: Tensor
    counts: Tensor
    rows: Tensor
    arrived: Tensor
    count: int
    offered: Tensor | None = None

    @property
    def block(self) -> int:
        """Units of a block."""
        return self.units.shape[1]

    def mask(self) -> Tensor:
        """Which units are kept, bool [count]."""
        listed = torch.arange(self.block, device=self.units.device) < self.counts[:, None]
        found = torch.empty(self.units.numel(), dtype=torch.bool, device=self.units.device)
        return found.scatter_(0, self.units.flatten().long(), listed.flatten())[: self.count]


def empty(like: Tensor, rows: int, count: int, block: int) -> Kept:
    """For a kernel to write into."""
    blocks = triton.cdiv(count, block)
    shapes = (blocks, block), (blocks,), (rows, blocks), (blocks * block,)
    units, counts, of_rows, arrived = (like.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return Kept(units, counts, of_rows, arrived, count)


def counting(like: Tensor, kept: Kept, programs: int) -> Tensor:
    """Zeros for so many groups of programs to count themselves by: those that were made with the lists, if enough."""
    enough = kept.arrived.numel() >= programs
    return kept.arrived if enough else like.new_zeros(programs, dtype=torch.int32)


def guarded(found: Kept, gate: Tensor, counters: Tensor | None = None, *, counter: int = 0) -> Tensor:
    """The counts after the guard, int32 [blocks]: every unit of every block where a row kept too few.

    counters int64: three of them, from the `counter`-th on, are told what the gate kept.
    """
    counts = torch.empty_like(found.counts)
    wrap_triton(_guard)[(1,)](
        found.rows, found.counts, gate, found.offered, counts, counters, counter, found.count,
        ROWS=len(found.rows), BLOCK=found.block, BLOCKS=triton.next_power_of_2(len(counts)),
    )  # fmt: skip
    return counts


def reference(score: Tensor, gate: Tensor, block: int) -> Kept:
    """The truth. score [B, units]: kept unless score <= threshold, where the threshold is not negative."""
    count = score.shape[1]
    blocks = triton.cdiv(count, block)
    kept = ~((score <= gate[0]) & (gate[0] >= 0))
    padded = F.pad(kept, (0, blocks * block - count)).view(len(score), blocks, block)
    shared = padded.any(0)
    order = (~shared).to(torch.int8).argsort(dim=1, stable=True)
    units = order + torch.arange(blocks, device=score.device)[:, None] * block
    arrived = torch.zeros(units.numel(), dtype=torch.int32, device=score.device)
    return Kept(units.int(), shared.sum(1).int(), padded.sum(2).int(), arrived, count)


@triton.jit
def list_units(
    kept_by,
    unit,
    units,
    counts,
    rows,
    arrived,
    block,
    blocks,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the list of one block, of `unit` int32 [BLOCK]. kept_by int32 [BLOCK]: a bit for each row that keeps it."""
    lane = tl.arange(0, BLOCK)
    row = tl.arange(0, BLOCK_B)
    tl.store(rows + row * blocks + block, tl.sum((kept_by[None, :] >> row[:, None]) & 1, 1), mask=row < ROWS)
    shared = (kept_by != 0).to(tl.int32)
    kept = tl.sum(shared, 0)
    before = tl.cumsum(shared, 0) - shared
    position = tl.where(shared != 0, before, kept + lane - before)
    tl.store(units + block * BLOCK + position, unit)
    tl.store(counts + block, kept)
    tl.store(arrived + block * BLOCK + lane, 0)


@triton.jit
def guard_failed(rows, gate, offered, units, blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """How many rows kept too few; any, and every unit is kept: for consumers. BLOCKS: a power of two >= blocks."""
    block = tl.arange(0, BLOCKS)
    if offered is None:
        total = units
    else:
        total = tl.sum(tl.load(offered + block, mask=block < blocks, other=0), 0)
    least = tl.load(gate + 1) * total
    failed = 0
    for b in tl.static_range(ROWS):
        kept = tl.sum(tl.load(rows + b * blocks + block, mask=block < blocks, other=0), 0)
        failed += (kept.to(tl.float32) < least).to(tl.int32)
    return failed


@triton.jit
def count_kept(counters, counts, offered, failed, units, blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Add to a gate's counters, which one program alone may do. failed: as `guard_failed` says."""
    block = tl.arange(0, BLOCKS)
    whole = units
    if offered is not None:
        whole = tl.sum(tl.load(offered + block, mask=block < blocks, other=0), 0)
    kept = tl.sum(tl.load(counts + block, mask=block < blocks, other=0), 0)
    tl.store(counters, tl.load(counters) + ROWS * units)
    tl.store(counters + 1, tl.load(counters + 1) + ROWS * tl.where(failed > 0, whole, kept))
    tl.store(counters + 2, tl.load(counters + 2) + failed)


@triton.jit
def _guard(
    rows, counts, gate, offered, out, counters, counter, units,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(units, BLOCK)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    whole = tl.minimum(units - block * BLOCK, BLOCK)
    kept = tl.load(counts + block, mask=inside, other=0)
    failed = guard_failed(rows, gate, offered, units, blocks, ROWS, BLOCKS)
    tl.store(out + block, tl.where(failed > 0, whole, kept), mask=inside)
    if counters is not None:
        count_kept(counters + counter, counts, offered, failed, units, blocks, ROWS, BLOCKS)


AHEAD = (
    Ahead(
        "guard[8 rows]",
        _guard,
        dict.fromkeys(("rows", "counts", "out"), "*i32")
        | {"gate": "*fp32", "units": "i32:16", "counters": "*i64", "counter": "i32"},
        {"ROWS": 8, "BLOCK": 128, "BLOCKS": 128, "offered": None},
    ),
)
