"""The training door: `srrc.train(model, tokenizer, out, phase=...)`, and `srrc train` behind it.

Phase 1 takes a pretrained model and its calibrated profile. Phase 2 (`router`) writes `OUT/profile.srr`: gates that
know which rows matter. Phase 3 (`joint`) writes `OUT/adapter/`, LoRA adapters as peft reads them, and
`OUT/adapted.srr`, a profile of the model with the adapter merged. The model that is given is never changed.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srrc.calibration import calibrate
from srrc.calibration_inputs import digest
from srrc.errors import OptionError, ProfileError
from srrc.gated_model import GatedModel
from srrc.models_zoo.adapted import merged
from srrc.profile import Profile
from srrc.training import state
from srrc.training.adapters import Adapters
from srrc.training.batches import Batches, tokenised
from srrc.training.joint import JointTraining
from srrc.training.log import logging
from srrc.training.plot import plot_joint, plot_router
from srrc.training.pretrain import BUDGETS, POWERS, pretrain
from srrc.training.routed import Routed
from srrc.training.router import Router
from srrc.training.settings import Joint
from srrc.training.workers import Workers

PHASES = ("router", "joint")

TRACED, CHECKED = 40, 4
"""Batches that the router's probes are fitted to, and those that tell how much they should count."""


@dataclass(frozen=True)
class Trained:
    """What a phase wrote.

    profile: to compile with; adapter: folder to merge into the model first, None after phase 2
    report:  numbers of the run, also in `OUT/PHASE.json`
    """

    profile: Path
    adapter: Path | None
    report: Mapping[str, Any]


def train(
    model: nn.Module,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    phase: str = "router",
    texts: Mapping[str, Sequence[str]] | None = None,
    profile: Profile | None = None,
    settings: Joint | None = None,
    quick: bool = False,
    progress: bool = True,
) -> Trained:
    """Run one phase of training. A phase that was stopped and is asked for again goes on where it was.

    model:    a causal language model; left as it is
    texts:    domain -> texts, each domain as likely to be drawn; by default the calibration half of the zoo's
    profile:  what gates start from. Phase 2: by default the model is calibrated. Phase 3: by default phase 2's in `out`
    settings: of phase 3, and the windows of phase 2
    quick:    calibrate coarsely and trace little: to see that it works
    Raises OptionError for settings or texts that make no sense; ModelError for a model that cannot be trained;
    ProfileError where `out` cannot be written, or phase 3 finds no profile.
    """
    if phase not in PHASES:
        raise OptionError(f"unknown phase {phase!r}; known: {', '.join(PHASES)}")
    folder, held = Path(out), settings or Joint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"cannot write {folder}: {error.strerror}") from error
    texts = _own_texts() if texts is None else texts
    batches = tokenised(tokenizer, texts, held.rows, held.length, held.seed)
    was_training, started = model.training, perf_counter()
    model.eval()
    try:
        if phase == "router":
            made = _router(model, tokenizer, folder, texts, batches, profile, quick=quick, progress=progress)
        else:
            profile = Profile.load(folder / "profile.srr") if profile is None else profile
            profile.check(dict(model.named_parameters()))
            made = _joint(
                model, tokenizer, folder, texts, batches, profile, held, quick=quick, progress=progress
            )
    finally:
        model.train(was_training)
    report = {
        **made.report,
        "seconds": perf_counter() - started,
        "texts": batches.digest,
        "tokens": batches.count,
    }
    (folder / f"{phase}.json").write_text(json.dumps(report, indent=1))
    return Trained(made.profile, made.adapter, report)


def _router(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    texts: Mapping[str, Sequence[str]],
    batches: Batches,
    profile: Profile | None,
    *,
    quick: bool,
    progress: bool,
) -> Trained:
    flat = [text for held in texts.values() for text in held]
    if profile is None:
        profile = calibrate(
            model, tokenizer, flat, quick=quick, progress=progress, checkpoint=folder / "thresholds.part"
        )
    gated = _captured(model, profile, batches)
    steps, checks = (4, 1) if quick else (TRACED, CHECKED)
    with logging(folder, "router", steps + len(POWERS) * checks, 0, show=progress) as log:
        done = 0

        def tell(what: str) -> None:
            nonlocal done
            done += 1
            log(done, {"done": float(done)})

        traced = pretrain(gated, profile, batches, _call, steps=steps, checks=checks, progress=tell)
    learned = calibrate(
        model,
        tokenizer,
        flat,
        quick=quick,
        progress=progress,
        checkpoint=folder / "profile.part",
        learned=traced.vectors,
    )
    learned.save(folder / "profile.srr")
    drifts = {f"{power:g}": found for power, found in traced.drifts.items()}
    plot_router(drifts, BUDGETS, folder / "router.png")
    report = {
        "power": traced.power,
        "drifts": drifts,
        "explained": traced.explained,
    }
    return Trained(folder / "profile.srr", None, report)


def _joint(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    texts: Mapping[str, Sequence[str]],
    batches: Batches,
    profile: Profile,
    settings: Joint,
    *,
    quick: bool,
    progress: bool,
) -> Trained:
    workers = Workers()
    gated = _captured(model, profile, batches)
    routed = Routed(gated)
    router = Router(routed.gates, routed.widths, settings.seed)
    router.start(
        {
            gate: profile.vectors[f"{gate}/emphasis"]
            for gate in routed.gates
            if f"{gate}/emphasis" in profile.vectors
        }
    )
    names = [gated.names[name] for name, weight in gated.weights.items() if weight.dim() == 2]
    adapters = Adapters(model, names, settings.rank, settings.seed) if settings.rank else None
    training = JointTraining(gated, profile, batches, _call, router, adapters, settings)
    kept = folder / "joint.state"
    key = digest(
        [asdict(settings), batches.digest, sorted(profile.gates), [s.values for s in profile.samples]]
    )
    before = state.load(kept, key)
    with logging(folder, "joint", settings.steps, before.step if before else 0, show=progress) as log:
        held = training.run(kept, key, log, workers, before)
    plot_joint(held.history, folder / "joint.png")
    adapter = folder / "adapter" if adapters is not None else None
    adapted = model
    if adapters is not None and adapter is not None:
        adapters.save(adapter)
        adapted = merged(copy.deepcopy(model), adapter)
    learned = calibrate(
        adapted,
        tokenizer,
        [text for each in texts.values() for text in each],
        quick=quick,
        progress=progress,
        checkpoint=folder / "adapted.part",
        learned=router.vectors(routed.norms),
        curves=profile,
    )
    learned.save(folder / "adapted.srr")
    last = held.history[-max(1, len(held.history) // 10) :]
    report = {"settings": asdict(settings), "kl": sum(each["kl"] for each in last) / len(last)}
    return Trained(folder / "adapted.srr", adapter, report)


def _captured(model: nn.Module, profile: Profile, batches: Batches) -> GatedModel:
    """The model's graph with the profile's gates, over weights of the dtype that this machine multiplies quicker."""
    dtype = quicker_dtype()
    twin = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
    gated = GatedModel(twin, _call(batches(0)))
    gated.insert(profile.covers, profile.vectors)
    return gated


def quicker_dtype() -> torch.dtype:
    """bfloat16 where products of it are quicker here than float32's, by a try of some milliseconds."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(256, 512).to(dtype), torch.randn(512, 512).to(dtype)
        F.linear(x, weight)
        started = perf_counter()
        for _ in range(5):
            F.linear(x, weight)
        times[dtype] = perf_counter() - started
    return min(times, key=lambda dtype: times[dtype])


def _call(ids: Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "use_cache": False}


def _own_texts() -> dict[str, list[str]]:
    from srrc.models_zoo.texts import domains, split

    return {domain: split(domain, "calibration") for domain in domains()}
