"""Where a training is, on disk: every tensor, the optimiser's moments and the step, so that a stopped run goes on as if
it had not been.

Batches are drawn by number (`batches.py`) and noise by step, so nothing else is needed for the same result to the last
bit. The file is safetensors with JSON metadata; nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srrc.errors import ProfileError
from srrc.profile import read_tensors, write_atomically

_KEY = "srrc_training"


@dataclass
class State:
    """One training.

    key:     of what and how: a state with another key is another training's
    step:    how many steps are done
    tensors: what is trained, by name
    moments: of Adam, "name/exp_avg" and "name/exp_avg_sq"
    history: per step, for plots: numbers by name
    """

    key: str
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def save(state: State, path: Path) -> None:
    """Write it, whole or not at all. Raises ProfileError."""
    tensors = {f"tensor/{name}": value.detach().contiguous() for name, value in state.tensors.items()}
    tensors |= {f"moment/{name}": value.detach().contiguous() for name, value in state.moments.items()}
    tensors["none"] = torch.zeros(1)  # a safetensors file of nothing is refused
    described = {"key": state.key, "step": state.step, "history": state.history}
    write_atomically(path, tensors, {_KEY: json.dumps(described)})


def load(path: Path, key: str) -> State | None:
    """The state at `path`, None where there is none of this training. Raises ProfileError where it cannot be read."""
    if not path.exists():
        return None
    tensors, described = read_tensors(path, _KEY)
    if described.get("key") != key:
        return None
    try:
        return State(
            key=key,
            step=int(described["step"]),
            tensors=_under("tensor/", tensors),
            moments=_under("moment/", tensors),
            history=list(described["history"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is damaged: {error!r}") from error


def keep_moments(optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's moments by name; nothing before its first step."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        held: Mapping[str, Any] = optimiser.state.get(parameter, {})
        found |= {f"{name}/{part}": held[part] for part in ("exp_avg", "exp_avg_sq") if part in held}
    return found


def restore_moments(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    step: int,
) -> None:
    """Put back what `keep_moments` gave after that many steps."""
    for name, parameter in parameters.items():
        if f"{name}/exp_avg" in moments:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": moments[f"{name}/exp_avg"].clone(),
                "exp_avg_sq": moments[f"{name}/exp_avg_sq"].clone(),
            }


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
