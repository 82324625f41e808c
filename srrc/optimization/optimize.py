"""`srrc.optimize(model, path)`: capture, gate, export, plan, check, measure, and only then write."""

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srrc.backends.onnx.interfaces import Interface, interfaces
from srrc.backends.onnx.interfaces.draw import random_calls
from srrc.backends.onnx.interfaces.plain import reads_text
from srrc.backends.onnx.lower import Marked, lower, prepare
from srrc.backends.onnx.trace import Traced
from srrc.bench.machine import describe_machine
from srrc.errors import OptionError
from srrc.optimization.companions import copy_companions, write_companions
from srrc.optimization.existing import Existing
from srrc.optimization.folder import check_target, filled, target_of
from srrc.optimization.gate_source import gate_source
from srrc.optimization.guide import write_guide
from srrc.optimization.one_file import Progress, Work, one_file
from srrc.optimization.report import FileReport, Report
from srrc.optimization.settings import Settings
from srrc.optimization.texts import tokenizer_in
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile


def optimize(
    model: nn.Module | str | Path,
    path: str | Path,
    *,
    tokenizer: Any = None,
    profile: Profile | str | Path | None = None,
    settings: Settings | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    name: str = "",
    progress: Progress = lambda what: None,
) -> Report:
    """Write `model` as ONNX files whose irrelevant pathways are skipped by standard operators.

    model:     a module, or the path of an ONNX file, whose own graph is gated then
    path:      the folder to make; one that ends in ".onnx" names the file in its folder
    tokenizer: goes along, and reads the held-out text that the result is judged on
    profile:   what each gate is worth; made here where a budget or a tolerated drift is given and this is not
    inputs:    keyword arguments of one call, for a model whose inputs cannot be told from its class
    name:      what the report calls the model
    Raises OptionError for settings that make no sense and for a folder that must not be replaced, ProfileError for a
    profile of other weights, ModelError for a model that cannot be exported or whose export is not eager's, and
    DriftError where the result drifts more than `settings.max_drift`. Nothing is written then.
    """
    settings = settings or Settings()
    target, stem = target_of(path)
    check_target(target, overwrite=settings.overwrite)
    if isinstance(profile, str | Path):
        profile = Profile.load(profile)
    if isinstance(model, nn.Module):
        was_training = model.training
        model.eval()
    try:
        with (
            filled(target, overwrite=settings.overwrite) as out,
            tempfile.TemporaryDirectory(dir=out.parent) as room,
        ):
            module = model if isinstance(model, nn.Module) else None
            work = Work(module, tokenizer, profile, settings, Path(room), progress)
            if module is None:
                reports = _from_file(work, Path(str(model)), stem, out)
            else:
                reports = _from_module(work, module, inputs, stem, out)
            report = _report(name or _name_of(model), work, reports)
            report.write(out / "srrc_report.json")
            write_guide(report, out / "README.md")
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)
    return report


def _from_module(
    work: Work, model: nn.Module, inputs: Mapping[str, Tensor] | None, stem: str | None, out: Path
) -> list[FileReport]:
    files = _renamed(interfaces(model, inputs), stem)
    if work.profile is None and not work.settings.exact:
        work.profile = _calibrated(work, model, inputs)
    reports = [one_file(work, functools.partial(_lowered, work, each), out) for each in files]
    write_companions(model, work.tokenizer, files, out)
    return reports


def _lowered(work: Work, interface: Interface) -> Marked:
    profile = work.profile

    def source(traced: Traced) -> GateSource:
        assert profile is not None
        return gate_source(profile, traced.fqns, traced.weights)

    exact = profile is None or work.settings.exact
    return lower(prepare(interface, None if exact else source, work.settings.levels))


def _from_file(work: Work, path: Path, stem: str | None, out: Path) -> list[FileReport]:
    with work.step("reading"):
        existing = Existing(path)
    existing.interface = replace(existing.interface, name=stem or existing.interface.name)
    if work.profile is None and not work.settings.exact:
        with work.step("calibrating"):
            work.profile = existing.calibrate(work.tokenizer, work.settings)
    profile = None if work.settings.exact else work.profile
    report = one_file(work, lambda: existing.mark(profile, work.settings), out)
    copy_companions(path, out)
    return [report]


def _renamed(files: tuple[Interface, ...], stem: str | None) -> tuple[Interface, ...]:
    """The files under the name that the user gave, where there is only one."""
    if stem is None:
        return files
    if len(files) > 1:
        names = ", ".join(f"{each.name}.onnx" for each in files)
        raise OptionError(f"this model becomes {len(files)} files ({names}); give the name of a folder")
    return (replace(files[0], name=stem),)


def _calibrated(work: Work, model: nn.Module, inputs: Mapping[str, Tensor] | None) -> Profile:
    """A quick profile of the gates that an ONNX model can have."""
    from srrc.calibration import calibrate

    coarse = work.settings.coarse
    tokenizer = tokenizer_in(work.tokenizer)
    text = tokenizer is not None and inputs is None and reads_text(model)
    batches = None if text else random_calls(model, inputs)
    with work.step("calibrating"):
        return calibrate(
            model,
            tokenizer,
            batches=batches,
            quick=True,
            channels=False,
            layers=coarse is None,
            coarse=coarse,
            blocks=work.settings.blocks,
            progress=False,
        )


def _name_of(model: nn.Module | str | Path) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else Path(str(model)).name


def _report(name: str, work: Work, files: list[FileReport]) -> Report:
    machine = describe_machine(work.settings.threads) | {
        package: version(package) for package in ("onnx", "onnxruntime", "onnxscript", "onnx-ir")
    }
    return Report(name, asdict(work.settings), machine, files, work.seconds)
