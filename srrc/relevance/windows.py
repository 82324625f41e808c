"""Cuts texts into windows of tokens: some to measure gates on, others to check many gates at once on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srrc.errors import ModelError


@dataclass(frozen=True)
class Windows:
    """Batches of windows, int64 [batch, length] each, all of one shape; every token is in one window at most.

    curves: to measure gates on; joint: to check many gates at once on; more: further text, for cheap
            statistics
    """

    curves: tuple[Tensor, ...]
    joint: tuple[Tensor, ...]
    more: tuple[Tensor, ...]


def cut(
    tokenizer: Any, texts: Sequence[str], windows: int, length: int, batch: int, more: int = 0
) -> Windows:
    """Spread windows evenly over all texts: `windows` for the curves, half as many for the joint drift,
    `more`.

    Each number is rounded up to whole batches. Where there is too little text, windows become fewer, then
    shorter.
    Raises ModelError for a text of fewer than eight tokens.
    """
    tokens: list[int] = []
    for text in texts:
        tokens += tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) < 8:
        raise ModelError(f"{len(tokens)} tokens are too little to calibrate on; give more text")
    curves, extra = -(-windows // batch), -(-more // batch)
    joint = max(1, curves // 2)
    fitting = len(tokens) // (batch * length)
    if fitting < 2:  # not even one batch for the curves and one for the joint drift
        batch, curves, joint, extra = 1, 1, 1, 0
        length = min(length, len(tokens) // 2)
    elif fitting < curves + joint:
        joint, extra = max(1, fitting // 3), 0
        curves = fitting - joint
    else:
        extra = min(extra, fitting - curves - joint)
    count = curves + joint + extra
    starts = [index * (len(tokens) - length) // (count * batch - 1) for index in range(count * batch)]
    cuts = torch.tensor([tokens[start : start + length] for start in starts])
    # Batch i holds every count-th window from the i-th on, so each batch, whatever it is for, spans all
    # texts.
    batches = [cuts[index::count] for index in range(count)]
    return Windows(
        tuple(batches[:curves]), tuple(batches[curves : curves + joint]), tuple(batches[curves + joint :])
    )
