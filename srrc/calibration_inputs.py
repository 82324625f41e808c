"""What a calibration looks at: windows of text, or the user's own batches, each for its purpose."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from srrc.errors import OptionError
from srrc.relevance.windows import Windows, cut

_BATCH = 2
"""Windows worked on at once: enough to keep the processor busy, few enough to need little memory."""


@dataclass(frozen=True)
class Effort:
    """How much to look at.

    windows:  how many windows of `length` tokens for the gates' curves; half as many more check many gates at
              once
    more:     how many more for statistics that need no intervention
    measured: fractions at which each gate is intervened on
    """

    windows: int = 4
    length: int = 192
    more: int = 16
    measured: tuple[float, ...] = (0.3, 0.5, 0.7)


QUICK = Effort(windows=2, length=128, more=8, measured=(0.5,))


@dataclass(frozen=True)
class Inputs:
    """Calls of the model, by purpose (see `Effort`). skip_first: positions of each that are not looked at."""

    curves: Sequence[Any]
    joint: Sequence[Any]
    more: Sequence[Any]
    skip_first: int

    @property
    def digest(self) -> str:
        """sha256 of all of them."""
        return digest([list(self.curves), list(self.joint), list(self.more)])

    @property
    def tokens(self) -> int:
        """How many tokens the curves are measured on; 0 where the inputs are no text."""
        ids = [call.get("input_ids") for call in self.curves if isinstance(call, dict)]
        return sum(each.numel() for each in ids if isinstance(each, Tensor))


def effort_of(quick: bool, windows: int | None, length: int | None) -> Effort:
    """The effort asked for. Raises OptionError for sizes that are no positive whole numbers."""
    effort = QUICK if quick else Effort()
    for name, given in (("windows", windows), ("length", length)):
        if given is None:
            continue
        if type(given) is not int or given < 1:
            raise OptionError(f"{name}={given!r} is not a whole number of at least 1")
        effort = replace(effort, windows=given) if name == "windows" else replace(effort, length=given)
    return effort


def text_windows(tokenizer: Any, texts: str | Sequence[str] | None, effort: Effort) -> Windows:
    """Windows of `texts`; without any, of topics of the Python reference. Raises ModelError for too little text."""
    if texts is None:
        from srrc.models_zoo.texts import split

        texts = split("docs", "calibration")
    texts = [texts] if isinstance(texts, str) else list(texts)
    return cut(tokenizer, texts, effort.windows, effort.length, _BATCH, effort.more)


def text_inputs(
    model: nn.Module, tokenizer: Any, texts: str | Sequence[str] | None, effort: Effort
) -> Inputs:
    """Windows of `texts`; without any, of topics of the Python reference. Raises OptionError, ModelError."""
    if tokenizer is None:
        raise OptionError(
            "calibrate() needs a tokenizer and texts, or batches= for a model that reads no text"
        )
    found = text_windows(tokenizer, texts, effort)
    fixed = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    known: Any = model
    pair = bool(getattr(getattr(known, "config", None), "is_encoder_decoder", False))

    def calls(windows: Sequence[Tensor]) -> list[Any]:
        made = [{"input_ids": window, **fixed} for window in windows]
        return [{**each, "decoder_input_ids": each["input_ids"]} for each in made] if pair else made

    # The first token of a text is a sink of attention, unlike any other; it is prefilled, never decoded.
    return Inputs(calls(found.curves), calls(found.joint), calls(found.more), skip_first=1)


def own_inputs(batches: list[Any]) -> Inputs:
    """The user's batches: the last third checks many gates at once (all of them, where there are fewer than
    three).
    """
    if not batches:
        raise OptionError("batches= is empty; give at least one call's inputs")
    extra = len(batches) // 3
    curves, joint = (batches[:-extra], batches[-extra:]) if extra else (batches, batches)
    return Inputs(curves, joint, (), skip_first=0)


def digest(value: Any) -> str:
    """sha256 of all tensors in a nested value, and of the rest as it prints."""
    found = hashlib.sha256()
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()
