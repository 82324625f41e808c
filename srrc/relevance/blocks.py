"""Blocks of an MLP's neurons: which neurons go together, and a probe a block that predicts what it contributes.

Neurons are sorted by how much they contribute on average, so that some blocks matter always and others seldom (the hot
and cold neurons of PowerInfer, Song et al. 2023). A probe is fitted as a branch's is (`relevance.probe`).
"""

import torch
from torch import Tensor

from srrc.relevance.basis import Moments
from srrc.relevance.probe import SMALLEST, direction, ridge


class NeuronTotal:
    """Running sum of |h| * norm, how much each neuron contributes: float32 [I].

    norm: float32 [I], of each neuron's column of `down`
    """

    def __init__(self, norm: Tensor) -> None:
        self._norm = norm
        self._sum = torch.zeros_like(norm)

    def add(self, hidden: Tensor) -> None:
        """Hidden [..., I], any floating dtype."""
        rows = hidden.detach().reshape(-1, len(self._norm))
        self._sum += rows.float().abs().sum(0)

    def split(self, blocks: int) -> Tensor:
        """The block of each neuron, int64 [I]: block 0 contributes most. Sizes differ by one at most."""
        order = (self._sum * self._norm).argsort(descending=True, stable=True)
        found = torch.empty(len(order), dtype=torch.int64)
        for block, members in enumerate(order.tensor_split(blocks)):
            found[members] = block
        return found


class BlockFit:
    """Running moments of (x / rms(x), log size of each block's contribution) over tokens, in float64.

    of:   int64 [I], the block of each neuron
    down: [N, I], the weight that the neurons are read by
    `see` takes the two values of one call, "x" [..., H] first.
    """

    def __init__(self, width: int, of: Tensor, down: Tensor) -> None:
        self.of = of
        self._down, self._width = down, width
        self._members = [(of == block).nonzero().flatten() for block in range(int(of.max()) + 1)]
        self._moments = Moments(width + len(self._members))
        self._features: Tensor | None = None

    def see(self, part: str, value: Tensor) -> None:
        """`part` is "x", the MLP's input, or "hidden" [..., I], what `down` reads."""
        rows = value.detach().reshape(-1, value.shape[-1]).float()
        if part == "x":
            self._features = direction(rows)
            return
        assert self._features is not None
        sizes = [
            torch.linalg.vector_norm(rows[:, members] @ self._down[:, members].float().t(), dim=-1)
            for members in self._members
        ]
        targets = torch.stack(sizes, -1).clamp(min=SMALLEST).log()
        both = torch.cat((self._features, targets), -1)
        self._moments.add(both[both.isfinite().all(-1)])

    def probes(self) -> Tensor:
        """float32 [blocks, H + 1]."""
        return ridge(self._moments, self._width)
