"""A history as a file: safetensors with JSON metadata, like a profile; nothing is ever unpickled."""

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srrc.control.beliefs import Beliefs
from srrc.control.domains import Domain, Domains
from srrc.control.history import History, Learned, Space
from srrc.control.plan import Plan
from srrc.control.regulator import Regulator
from srrc.errors import ProfileError
from srrc.profile import read_tensors, write_atomically

FORMAT = 1
"""Version of the file's layout."""

PLANS = 2
"""Plans of a domain that are written, those used last: each takes some 20 kB, and requests wait while they are."""

_KEY = "srrc_history"


def save(history: History, path: Path) -> None:
    """Write it, whole or not at all. Raises ProfileError where the folder cannot be written."""
    with history.lock:
        tensors: dict[str, Tensor] = {"none": torch.zeros(1)}  # a safetensors file of nothing is refused
        spaces = []
        for index, (name, space) in enumerate(history.spaces.items()):
            known = space.domains.known
            if known:
                tensors[f"means/{index}"] = torch.stack([domain.mean for domain in known])
            spaces.append(
                {
                    "name": name,
                    "clock": space.domains.clock,
                    "named": space.domains.named,
                    "domains": [[domain.name, domain.seen, domain.last] for domain in known],
                    "learned": [_described(space.learned[domain.name]) for domain in known],
                    "rest": _described(space.rest),
                }
            )
        described = {"format": FORMAT, "profile": history.profile, "spaces": spaces}
        text = json.dumps(described)
    write_atomically(path, tensors, {_KEY: text})


def load(path: Path, profile: str) -> History:
    """The history at `path`; an empty one where there is no file yet.

    Raises ProfileError for one of another profile, and for a file that is none or cannot be read.
    """
    history = History(profile)
    if not path.exists():
        return history
    tensors, described = read_tensors(path, _KEY, "history")
    if described.get("format") != FORMAT:
        raise ProfileError(
            f"{path} has history format {described.get('format')!r}, this srrc reads {FORMAT}; remove it"
        )
    if described.get("profile") != profile:
        raise ProfileError(
            f"the history {path} was made with another profile; give another file or remove it"
        )
    try:
        for index, entry in enumerate(described["spaces"]):
            history.spaces[entry["name"]] = _space(entry, tensors.get(f"means/{index}", torch.zeros(0, 0)))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is damaged: {type(error).__name__}: {error}; remove it") from error
    return history


def _described(learned: Learned) -> dict[str, Any]:
    return {
        "beliefs": learned.beliefs.state(),
        "explored": learned.explored,
        "regulators": [[r.bound, r.reach, r.level, r.watching] for r in learned.regulators.values()],
        "plans": {
            key: dataclasses.asdict(plan) | {"reverted": sorted(plan.reverted)}
            for key, plan in [*learned.plans.items()][-PLANS:]
        },
        "seconds": learned.seconds,
    }


def _space(entry: Mapping[str, Any], means: Tensor) -> Space:
    domains = [Domain(name, means[at], seen, last) for at, (name, seen, last) in enumerate(entry["domains"])]
    learned = {domain.name: _learned(each) for domain, each in zip(domains, entry["learned"], strict=True)}
    return Space(Domains(domains, entry["clock"], entry["named"]), learned, _learned(entry["rest"]))


def _learned(entry: Mapping[str, Any]) -> Learned:
    regulators = [
        Regulator(bound, reach, level=level, watching=watching)
        for bound, reach, level, watching in entry["regulators"]
    ]
    return Learned(
        beliefs=Beliefs.of(entry["beliefs"]),
        explored=entry["explored"],
        regulators={regulator.bound: regulator for regulator in regulators},
        plans=OrderedDict((key, _plan(plan)) for key, plan in entry["plans"].items()),
        seconds=entry["seconds"],
    )


def _plan(entry: Mapping[str, Any]) -> Plan:
    thresholds = {
        phase: {gate: (float(record[0]), float(record[1])) for gate, record in records.items()}
        for phase, records in entry["thresholds"].items()
    }
    return Plan(**{**entry, "thresholds": thresholds, "reverted": frozenset(entry["reverted"])})
