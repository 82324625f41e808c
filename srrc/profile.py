"""What calibration learned about one model, in one file: how each gate scores, and what closing it costs in
drift.

The file is safetensors with JSON metadata; nothing is ever unpickled. `docs/calibration.md` describes how it
is made.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from srrc import __version__, fingerprint
from srrc.errors import ProfileError

FORMAT = 1
"""Version of the file's layout: raised when a reader of an older one would misread it."""

_KEY = "srrc_profile"


@dataclass(frozen=True)
class GateCost:
    """C(p) of one gate for one row. All counts are for the whole model's weights as calibrated.

    units:    how many units it decides over
    flops:    floating-point operations that one unit costs
    bytes:    bytes of weights that one unit reads
    overhead: floating-point operations of deciding, per unit, paid whenever the gate is there
    fixed_flops, fixed_bytes: what the gate adds however many units it drops (a rotation, exact candidates)
    spared_bytes: what it saves however many it keeps: bytes of the dense weights beyond those of all units,
                  which are read from a narrower copy
    """

    units: int
    flops: float
    bytes: float
    overhead: float = 1.0
    fixed_flops: float = 0.0
    fixed_bytes: float = 0.0
    spared_bytes: float = 0.0


@dataclass(frozen=True, eq=False)
class GateProfile:
    """One gate. All tensors are float32; P is the number of points of its curve, which begins at fraction 0.

    id:        "kind:place", with "/input", "/neuron", "/down" or "/blocks" for the gates of an MLP
    quantiles: [Q] scores at evenly spaced fractions 0..1 of (token, unit) pairs: entry i is the threshold
               that drops a fraction i / (Q - 1)
    fractions: [P] of units dropped, ascending
    drift:     [P] nats a token: mean KL(dense, gated) of the model's output with this gate alone at that
               fraction
    error:     [P] standard error of `drift`
    kept_low:  [P] smallest fraction of units that a row kept (but for a few rows in a thousand)
    scale:     typical |input| behind the score: geometric mean of score / norm
    cost:      as it was at calibration; a plan may be made with others (another dtype)
    around:    id of the gate that it stands inside of, "" for none: where that one drops a row, this one saves nothing
    """

    id: str
    quantiles: Tensor
    fractions: Tensor
    drift: Tensor
    error: Tensor
    kept_low: Tensor
    cost: GateCost
    scale: float = 1.0
    around: str = ""

    @property
    def kind(self) -> str:
        """The pathway kind that it stands on."""
        return self.id.split(":", 1)[0]

    @property
    def place(self) -> str:
        """The pathway's place, without the gate's own suffix."""
        return self.id.split(":", 1)[1].split("/", 1)[0]

    def threshold(self, fraction: float) -> float:
        """The score up to which units are dropped so that `fraction` of them are; -1 (none) for 0."""
        if fraction <= 0:
            return -1.0
        at = torch.linspace(0, 1, len(self.quantiles), dtype=torch.float32)
        return _interpolate(self.quantiles, at, fraction)

    def min_kept(self, fraction: float) -> float:
        """The fraction of units below which a row is outside of what was calibrated, at `fraction`
        dropped.
        """
        return 0.0 if fraction <= 0 else _interpolate(self.kept_low, self.fractions, fraction)

    def drift_at(self, fraction: float) -> float:
        """Expected drift (nats a token) at `fraction` dropped, with this gate alone."""
        return _interpolate(self.drift, self.fractions, fraction)


@dataclass(frozen=True)
class Joint:
    """Many gates at once: the sum of their own drifts, and the drift that was measured, with its standard
    error.
    """

    added: float
    measured: float
    error: float


@dataclass(frozen=True, eq=False)
class Profile:
    """What calibration learned about one model.

    gates:   by gate id
    samples: of the weights it was made for
    model:   class, parameter count, dtype, and whatever else describes it, for people
    texts:   what it was calibrated on: a sha256 of the tokens, their number, how drift was measured
    joint:   measured drift of several plans, ascending, so that a plan's predicted drift is honest
    vectors: "gate id/name" -> what a gate needs beside the weights (norms, means, bases)
    """

    gates: Mapping[str, GateProfile]
    samples: tuple[fingerprint.Sample, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    joint: tuple[Joint, ...] = ()
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def covers(self, gate_id: str) -> bool:
        """Whether the gate has a curve."""
        return gate_id in self.gates

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ProfileError unless these weights (some or all of a model's, by name) are what it was made
        for.
        """
        reason = fingerprint.difference(self.samples, parameters)
        if reason is not None:
            raise ProfileError(
                f"this profile was made for other weights ({reason}); calibrate this model anew"
            )

    def digest(self) -> str:
        """A sha256 that tells this profile from others: of its curves, its vectors' names, and its weights."""
        found = hashlib.sha256(json.dumps([self.texts, sorted(self.vectors)], sort_keys=True).encode())
        for gate in self.gates.values():
            found.update(gate.id.encode())
            for tensor in (gate.quantiles, gate.fractions, gate.drift):
                found.update(tensor.numpy().tobytes())
        for sample in self.samples:
            found.update(sample.name.encode() + sample.values.numpy().tobytes())
        return found.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all. Raises ProfileError where the folder cannot be written."""
        write_atomically(Path(path), *_encode(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Profile":
        """Read one. Raises ProfileError: missing, truncated, not a profile, or of another version."""
        return _decode(Path(path), *read_tensors(Path(path), _KEY))


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_bytes(save(dict(tensors), dict(metadata)))  # save_file would hide it from other users
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ProfileError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, key: str, what: str = "profile") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and the JSON under `key` of its metadata. Raises ProfileError.

    what: the file is called in messages
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = path.stat().st_size
    except FileNotFoundError:
        raise ProfileError(f"no profile at {path}; make one with `srrc calibrate`") from None
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from error
    header = int.from_bytes(start[:8], "little")
    if len(start) == 9 and (start[8:] != b"{" or header > 100_000_000):
        raise ProfileError(f"{path} is not a {what} (not a safetensors file)")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if key not in metadata:
                raise ProfileError(f"{path} is not a {what} (a safetensors file of something else)")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata[key])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ProfileError(f"{path} is truncated or damaged ({size} bytes): {error}") from error


def _encode(profile: Profile) -> tuple[dict[str, Tensor], dict[str, str]]:
    gates = list(profile.gates.values())
    tensors = {f"vector/{name}": tensor.contiguous() for name, tensor in profile.vectors.items()}
    for name in ("quantiles", "fractions", "drift", "error", "kept_low"):
        for index, gate in enumerate(gates):
            tensors[f"gate/{index}/{name}"] = getattr(gate, name).to(torch.float32).contiguous()
    tensors["samples"] = torch.cat([torch.zeros(0), *(sample.values for sample in profile.samples)])
    described = {
        "format": FORMAT,
        "srrc": __version__,
        "model": profile.model,
        "texts": profile.texts,
        "gates": [
            {"id": gate.id, "scale": gate.scale, "cost": asdict(gate.cost), "around": gate.around}
            for gate in gates
        ],
        "joint": [asdict(point) for point in profile.joint],
        "samples": [
            {"name": s.name, "shape": s.shape, "dtype": s.dtype, "count": len(s.values)}
            for s in profile.samples
        ],
    }
    return tensors, {_KEY: json.dumps(described)}


def _decode(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Profile:
    if described.get("format") != FORMAT:
        raise ProfileError(
            f"{path} has profile format {described.get('format')!r} (srrc {described.get('srrc')}), "
            f"this srrc reads {FORMAT}; calibrate anew"
        )
    try:
        gates = [_gate(tensors, index, entry) for index, entry in enumerate(described["gates"])]
        return Profile(
            gates={gate.id: gate for gate in gates},
            samples=_samples(tensors["samples"], described["samples"]),
            model=described["model"],
            texts=described["texts"],
            joint=tuple(Joint(**point) for point in described["joint"]),
            vectors={
                name.removeprefix("vector/"): t for name, t in tensors.items() if name.startswith("vector/")
            },
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProfileError(f"{path} is damaged: {error!r}") from error


def _gate(tensors: Mapping[str, Tensor], index: int, entry: Mapping[str, Any]) -> GateProfile:
    names = ("quantiles", "fractions", "drift", "error", "kept_low")
    held = {name: tensors[f"gate/{index}/{name}"] for name in names}
    cost, around = GateCost(**entry["cost"]), str(entry.get("around", ""))
    return GateProfile(id=entry["id"], scale=float(entry["scale"]), cost=cost, around=around, **held)


def _samples(values: Tensor, entries: Sequence[Mapping[str, Any]]) -> tuple[fingerprint.Sample, ...]:
    parts = torch.split(values, [int(entry["count"]) for entry in entries]) if entries else ()
    return tuple(
        fingerprint.Sample(entry["name"], tuple(entry["shape"]), entry["dtype"], part.clone())
        for entry, part in zip(entries, parts, strict=True)
    )


def _interpolate(values: Tensor, at: Tensor, point: float) -> float:
    """`values` at `point` of the ascending `at`, linear between entries and constant outside."""
    upper = int(torch.searchsorted(at, torch.tensor(point, dtype=at.dtype)).clamp(1, len(at) - 1))
    low, high = float(at[upper - 1]), float(at[upper])
    share = 0.0 if high == low else min(max((point - low) / (high - low), 0.0), 1.0)
    return float(values[upper - 1]) * (1 - share) + float(values[upper]) * share
