"""A calibration's state on disk after each gate, so that one that was stopped goes on where it was."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from srrc.errors import ProfileError
from srrc.profile import read_tensors, write_atomically
from srrc.relevance.drift import Drift
from srrc.relevance.information import Measured

_KEY = "srrc_checkpoint"


@dataclass
class State:
    """Where a calibration is.

    key:   what it calibrates and how: a state with another key is of no use
    found: gate id -> what has been seen; sealed
    batch: the batch at work, and in it the ids that are `done`
    """

    key: str
    found: dict[str, Measured] = field(default_factory=dict)
    batch: int = 0
    done: set[str] = field(default_factory=set)


def save(state: State, path: Path) -> None:
    """Write it, whole or not at all. Raises ProfileError."""
    entries = list(state.found.values())
    width = max((len(entry.drifts) for entry in entries), default=0)
    drifts = torch.zeros(len(entries), width, 3, dtype=torch.float64)
    for index, entry in enumerate(entries):
        for column, drift in enumerate(entry.drifts):
            drifts[index, column] = torch.tensor(
                [drift.total, drift.squares, drift.count], dtype=torch.float64
            )
    tensors = {
        "quantiles": torch.stack([entry.quantiles for entry in entries]),
        "response": torch.stack([entry.response for entry in entries]),
        "kept_low": torch.stack([entry.kept_low for entry in entries]),
        "drifts": drifts,
    }
    described = {
        "key": state.key,
        "batch": state.batch,
        "done": sorted(state.done),
        "gates": [
            {"id": name, "scale": entry.scale, "units": entry.units, "at": entry.at}
            for name, entry in state.found.items()
        ],
    }
    write_atomically(path, tensors, {_KEY: json.dumps(described)})


def load(path: Path, key: str) -> State | None:
    """The state at `path`; None where there is none, or one of another calibration, or one that cannot be
    read.
    """
    try:
        tensors, described = read_tensors(path, _KEY)
        if described["key"] != key:
            return None
        found = {gate["id"]: _measured(tensors, index, gate) for index, gate in enumerate(described["gates"])}
        return State(key, found, int(described["batch"]), set(described["done"]))
    except (ProfileError, KeyError, IndexError, TypeError, ValueError):
        return None


def _measured(tensors: Mapping[str, torch.Tensor], index: int, gate: Mapping[str, Any]) -> Measured:
    rows = tensors["drifts"][index, : len(gate["at"])].tolist()
    return Measured(
        sketch=None,
        quantiles=tensors["quantiles"][index].clone(),
        scale=float(gate["scale"]),
        at=tuple(gate["at"]),
        drifts=[Drift(total, squares, int(number)) for total, squares, number in rows],
        response=tensors["response"][index].clone(),
        kept_low=tensors["kept_low"][index].clone(),
        units=int(gate["units"]),
    )
