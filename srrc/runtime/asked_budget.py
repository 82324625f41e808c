"""Budgets that `set_budget` asked for, so that graphs compiled later follow them too.

A model's graphs are compiled one by one, each when it is first needed; a budget is set for the model.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from srrc.options import Budget, Options


@dataclass
class _Asked:
    budget: Budget
    options: Options | None


_lock = threading.Lock()
_asked = WeakTensorKeyDictionary()


def ask(parameters: Iterable[torch.Tensor], budget: Budget, options: Options | None) -> None:
    """Remember `budget` for the model that has `parameters`.

    options: those that its graphs were compiled with, None where none is yet: then those of the first one
    """
    asked = _Asked(budget, options)
    with _lock:
        for parameter in parameters:
            _asked[parameter] = asked


def asked_budget(parameters: Sequence[torch.Tensor], options: Options) -> Budget | None:
    """The budget asked for, for a graph over `parameters`; None where none was.

    Compiling with other options is a fresh start.
    """
    with _lock:
        for parameter in parameters:
            asked: _Asked | None = _asked.get(parameter)  # type: ignore[no-untyped-call]
            if asked is None:
                continue
            if asked.options is None:
                asked.options = options
            return asked.budget if asked.options == options else None
    return None
