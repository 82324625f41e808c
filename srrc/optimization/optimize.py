"""`srrc.optimize(model, path)`: capture, gate, export, plan, check, measure, and only then write."""

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from srrc.backends.onnx.gates import THRESHOLDS, expand, gates_in
from srrc.backends.onnx.interfaces import Interface, interfaces
from srrc.backends.onnx.interfaces.draw import random_calls
from srrc.backends.onnx.lower import Marked, lower, prepare
from srrc.backends.onnx.quantise import BITS, quantise
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.backends.onnx.trace import Traced
from srrc.bench.machine import describe_machine
from srrc.bench.memory import peak, reset_peak
from srrc.control.plan import Plan
from srrc.errors import DriftError, OptionError
from srrc.optimization.checks import Parity, check_file, compare_outputs
from srrc.optimization.companions import copy_companions, write_companions
from srrc.optimization.existing import Existing
from srrc.optimization.folder import check_target, filled, target_of
from srrc.optimization.frontier import measure_frontier, plot_frontier
from srrc.optimization.guide import write_guide
from srrc.optimization.plan import GatePlan, Saving, make_plan, other_budgets
from srrc.optimization.quality import Quality
from srrc.optimization.reader import Reader, reader_of
from srrc.optimization.report import FileReport, GateReport, Report
from srrc.optimization.settings import Settings
from srrc.optimization.timing import latencies, measure_savings
from srrc.passes.gating.residual import COARSE
from srrc.passes.gating.source import GateSource
from srrc.profile import Profile

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass
class _Work:
    """One run.

    folder:  where candidates are tried out
    seconds: what each step took
    """

    model: nn.Module | None
    tokenizer: Any
    profile: Profile | None
    settings: Settings
    folder: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str) -> "_Timed":
        self.progress(name)
        return _Timed(self.seconds, name)


class _Timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name, self._started = seconds, name, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._started


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
            work = _Work(module, tokenizer, profile, settings, Path(room), progress)
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
    work: _Work, model: nn.Module, inputs: Mapping[str, Tensor] | None, stem: str | None, out: Path
) -> list[FileReport]:
    files = _renamed(interfaces(model, inputs), stem)
    if work.profile is None and not work.settings.exact:
        work.profile = _calibrated(work, model, inputs)
    source = None if work.profile is None or work.settings.exact else _source(work.profile)
    levels = work.settings.levels
    reports = [_one_file(work, functools.partial(_lowered, each, source, levels), out) for each in files]
    write_companions(model, work.tokenizer, files, out)
    return reports


def _lowered(interface: Interface, source: Any, levels: frozenset[str]) -> Marked:
    return lower(prepare(interface, source, levels))


def _from_file(work: _Work, path: Path, stem: str | None, out: Path) -> list[FileReport]:
    with work.step("reading"):
        existing = Existing(path)
    existing.interface = replace(existing.interface, name=stem or existing.interface.name)
    if work.profile is None and not work.settings.exact:
        with work.step("calibrating"):
            work.profile = existing.calibrate(work.tokenizer, work.settings)
    profile = None if work.settings.exact else work.profile
    report = _one_file(work, lambda: existing.mark(profile, work.settings), out)
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


def _calibrated(work: _Work, model: nn.Module, inputs: Mapping[str, Tensor] | None) -> Profile:
    """A quick profile of the gates that an ONNX model can have."""
    from srrc.calibration import calibrate

    coarse = work.settings.coarse
    batches = None if callable(work.tokenizer) and inputs is None else random_calls(model, inputs)
    with work.step("calibrating"):
        return calibrate(
            model,
            work.tokenizer,
            batches=batches,
            quick=True,
            channels=False,
            layers=coarse is None,
            coarse=coarse,
            progress=False,
        )


def _source(profile: Profile) -> Callable[[Traced], GateSource]:
    def make(traced: Traced) -> GateSource:
        profile.check({traced.fqns[placeholder]: weight for placeholder, weight in traced.weights.items()})
        return GateSource(
            covers=lambda gate: profile.covers(gate) and gate.split(":", 1)[0] in {"residual", "vocab"},
            weights=traced.weights,
            vectors=profile.vectors,
            many_rows=True,
            coarse=True,
        )

    return make


def _one_file(work: _Work, make: Callable[[], Marked], out: Path) -> FileReport:
    """Write one file into `out`, and say how it does."""
    settings, profile = work.settings, work.profile
    reset_peak()
    with work.step("exporting"):
        marked = make()
        interface = marked.interface
        exact_path = _put(marked, {}, work.folder / f"{interface.name}-dense")
    export_peak = peak()
    reader = reader_of(work.model, work.tokenizer, interface, settings)
    exact = Session(exact_path, settings.threads)
    dense = _quantised(work, marked, {}, "quantised") or exact
    plan, savings, seconds = _plan(work, marked, dense, reader)
    path = _put(marked, plan.thresholds, out)
    with work.step("checking"):
        check_file(path)
    opened = {THRESHOLDS: torch.full((len(plan.thresholds),), -1.0)} if plan.thresholds else {}
    with work.step("comparing with eager"):
        worst = compare_outputs(interface, Session(path, settings.threads), opened)
    if settings.precision in BITS:
        with work.step("quantising"):
            quantise(path, BITS[settings.precision])
    session = Session(path, settings.threads)
    with work.step("comparing with eager"):
        tokens = reader.tokens(session, opened)
    quality = None
    if plan.thresholds or settings.precision in BITS:
        with work.step("measuring drift"):
            quality = reader.quality(exact, session, {})
        _refuse_drift(quality, settings.max_drift)
    with work.step("timing"):
        latency = latencies(reader, dense, session, settings.rounds)
    budgets = {} if profile is None else other_budgets(profile, savings, seconds, plan, settings.max_drift)
    frontier = None
    if settings.frontier and plan.thresholds and profile is not None:
        with work.step("measuring every budget"):
            gates = [*plan.thresholds]
            frontier = measure_frontier(reader, dense, session, gates, budgets, profile, settings.rounds)
            plot_frontier(frontier, out / f"{interface.name}-frontier.png")
    left_out = {f"{r.kind}:{r.place}": r.reason.value for r in marked.refusals} | dict(plan.left_out)
    return FileReport(
        name=path.name,
        inputs={
            value.name or "": [str(size) for size in value.shape or ()] for value in marked.model.graph.inputs
        },
        outputs=interface.outputs,
        export_peak_bytes=export_peak,
        bytes=sum(each.stat().st_size for each in out.glob(f"{interface.name}.onnx*")),
        parity=Parity(worst, tokens),
        quality=quality,
        latency=latency,
        gates=[
            GateReport(gate, at, limit, plan.plan.fractions.get(gate, 0.0), *_pair(savings[gate]))
            for at, (gate, limit) in enumerate(plan.thresholds.items())
        ],
        left_out=left_out,
        budgets=budgets,
        frontier=frontier,
        planned={"latency": plan.plan.spent, "drift": plan.plan.drift},
    )


def _pair(saving: Saving) -> tuple[float, float]:
    return saving.saved, saving.overhead


def _put(marked: Marked, thresholds: Mapping[str, float], folder: Path) -> Path:
    """Write the file with these gates into a folder."""
    name = marked.interface.name
    folder.mkdir(exist_ok=True)
    model = ir.Model(marked.model.graph.clone(), ir_version=marked.model.ir_version, producer_name="srrc")
    expand(model, thresholds)
    return save(model, folder / f"{name}.onnx")


def _quantised(work: _Work, marked: Marked, thresholds: Mapping[str, float], name: str) -> Session | None:
    """The file with these gates and quantised weights, for trying out; None where weights stay as they are."""
    if work.settings.precision not in BITS:
        return None
    path = _put(marked, thresholds, work.folder / f"{marked.interface.name}-{name}")
    with work.step("quantising"):
        return Session(quantise(path, BITS[work.settings.precision]), work.settings.threads)


def _plan(
    work: _Work, marked: Marked, dense: Session, reader: Reader
) -> tuple[GatePlan, Mapping[str, Saving], float]:
    """The plan, from what each gate that can stand in the file measures."""
    gates = gates_in(marked.model)
    if not gates or work.profile is None:
        return GatePlan(Plan(), {}, {}), {}, 0.0
    settings = work.settings
    savings: dict[str, Saving] = {}
    seconds = 0.0
    for members in _apart(gates):
        opened = dict.fromkeys(members, -1.0)
        every = _quantised(work, marked, opened, "every")
        if every is None:
            every = Session(
                _put(marked, opened, work.folder / f"{marked.interface.name}-every"), settings.threads
            )
        with work.step("timing gates"):
            groups = {gate: (gate.endswith(COARSE), *_cost(marked, gate)) for gate in members}
            feeds = reader.calls()[-1].feeds
            seconds, found = measure_savings(dense, every, feeds, members, groups, settings.rounds)
        savings |= found
    savings = {gate: savings[gate] for gate in gates}
    return make_plan(work.profile, savings, seconds, settings.budget, settings.max_drift), savings, seconds


def _apart(gates: list[str]) -> list[list[str]]:
    """Gates that may stand in one file without one inside of another: those that leave branches out, and the others."""
    out = [gate for gate in gates if gate.startswith("residual:") and not gate.endswith(COARSE)]
    others = [gate for gate in gates if gate not in out]
    return [members for members in (out, others) if members]


def _cost(marked: Marked, gate: str) -> tuple[float, float]:
    return marked.gates[gate].flops, marked.gates[gate].bytes


def _refuse_drift(quality: Quality, max_drift: float | None) -> None:
    if max_drift is not None and quality.kl > max_drift:
        raise DriftError(
            f"the gated model drifts {quality.kl:.4f} nats a token on held-out text, more than the {max_drift:g} that "
            "were allowed; nothing was written. Calibrate longer, or allow more"
        )


def _name_of(model: nn.Module | str | Path) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else Path(str(model)).name


def _report(name: str, work: _Work, files: list[FileReport]) -> Report:
    machine = describe_machine(work.settings.threads) | {
        package: version(package) for package in ("onnx", "onnxruntime", "onnxscript", "onnx-ir")
    }
    return Report(name, asdict(work.settings), machine, files, work.seconds)
