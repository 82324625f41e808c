"""One file of a model: export, choose gates, check, measure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from srrc.backends.onnx.gates import THRESHOLDS, expand, gates_in
from srrc.backends.onnx.lower import Marked
from srrc.backends.onnx.quantise import BITS, quantise
from srrc.backends.onnx.save import save
from srrc.backends.onnx.session import Session
from srrc.bench.memory import peak, reset_peak
from srrc.control.plan import Plan
from srrc.errors import DriftError
from srrc.optimization.branches import branches_of
from srrc.optimization.checks import Parity, check_file, compare_outputs
from srrc.optimization.frontier import measure_frontier, plot_frontier
from srrc.optimization.plan import GatePlan, Measured, Saving, make_plan, other_budgets
from srrc.optimization.quality import Quality
from srrc.optimization.reader import Reader
from srrc.optimization.reader_of import reader_of
from srrc.optimization.report import FileReport, GateReport
from srrc.optimization.settings import Settings
from srrc.optimization.timing import latencies, measure_savings
from srrc.optimization.variants import write_dense, write_variants
from srrc.passes.gating.blocks import BLOCKS
from srrc.passes.gating.residual import COARSE
from srrc.profile import Profile

NO_GATE = {
    "channel": "to skip channels is to gather weights, which ONNX Runtime does slower than it reads them all"
}
"""Why pathways of a kind have no gate in ONNX (figures in docs/onnx.md)."""

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass
class Work:
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
        """A block whose time is counted under `name`, and shown."""
        self.progress(name)
        return _Timed(self.seconds, name)


class _Timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name, self._started = seconds, name, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._started


def one_file(work: Work, make: Callable[[], Marked], out: Path) -> FileReport:
    """Write one file into `out`, and say how it does."""
    settings, profile = work.settings, work.profile
    reset_peak()
    with work.step("exporting"):
        marked = make()
        interface = marked.interface
        exact_path = _put(marked, {}, work.folder / f"{interface.name}-dense")
    export_peak = peak()
    reader = reader_of(work.model, work.tokenizer, interface, settings)
    dense = _quantised(work, marked, {}, "quantised") or Session(exact_path, settings.threads)
    plan, budgets, measured = GatePlan(Plan(), {}, {}), {}, Measured(0.0, {})
    if profile is not None and gates_in(marked.model):
        measured = _measured(work, marked, dense, reader)
        plan = make_plan(profile, measured, settings.budget, settings.max_drift)
        budgets = other_budgets(profile, measured, plan, settings.max_drift, settings.variants)
    path = _put(marked, plan.thresholds, out)
    with work.step("checking"):
        check_file(path)
    opened = {THRESHOLDS: torch.full((len(plan.thresholds),), -1.0)} if plan.thresholds else {}
    session = Session(path, settings.threads)
    with work.step("comparing with eager"):
        worst = compare_outputs(interface, session, opened)
    if settings.precision in BITS:
        with work.step("quantising"):
            session = Session(quantise(path, BITS[settings.precision]), settings.threads)
    with work.step("comparing with eager"):
        tokens = reader.tokens(session, opened)
    quality = None
    if plan.thresholds or settings.precision in BITS:
        with work.step("measuring drift"):
            rounded = settings.precision in BITS
            (quality,) = reader.quality(
                Session(exact_path, settings.threads) if rounded else dense, session, [{}]
            )
        _refuse_drift(quality, settings.max_drift)
    with work.step("timing"):
        latency = latencies(reader, dense, session, settings.rounds)
    variants = _write_variants(work, marked, budgets, path) if plan.thresholds else []
    frontier = None
    if settings.frontier and plan.thresholds and profile is not None:
        with work.step("measuring every budget"):
            gates = [*plan.thresholds]
            frontier = measure_frontier(reader, dense, session, gates, budgets, profile, settings.rounds)
            plot_frontier(frontier, out / f"{interface.name}-frontier.png")
    left_out = {f"{r.kind}:{r.place}": NO_GATE.get(r.kind, r.reason.value) for r in marked.refusals}
    left_out |= plan.left_out
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
            GateReport(gate, at, limit, plan.plan.fractions.get(gate, 0.0), *_pair(measured.savings[gate]))
            for at, (gate, limit) in enumerate(plan.thresholds.items())
        ],
        left_out=left_out,
        measured={gate: each for gate, each in measured.savings.items() if gate not in plan.thresholds},
        budgets=budgets,
        variants=[each.name for each in variants],
        frontier=frontier,
        planned={"latency": plan.plan.spent, "drift": plan.plan.drift},
    )


def _write_variants(
    work: Work, marked: Marked, budgets: Mapping[float, list[float]], path: Path
) -> list[Path]:
    """The files of other budgets. Beside weights of few bits that without skipping has gates, and they are open."""
    wanted = dict.fromkeys(work.settings.variants)
    apart = work.settings.precision in BITS
    with work.step("writing other budgets"):
        written = write_variants(path, {each: budgets[each] for each in wanted if apart or each != 1.0})
        if 1.0 in wanted and not apart:
            written.append(write_dense(_expanded(marked, {}), path))
        for each in written:
            check_file(each)
    return written


def _pair(saving: Saving) -> tuple[float, float]:
    return saving.saved, saving.overhead


def _put(marked: Marked, thresholds: Mapping[str, float], folder: Path) -> Path:
    """Write the file with these gates into a folder."""
    name = marked.interface.name
    folder.mkdir(exist_ok=True)
    return save(_expanded(marked, thresholds), folder / f"{name}.onnx")


def _expanded(marked: Marked, thresholds: Mapping[str, float]) -> ir.Model:
    """A copy of the graph with these gates."""
    model = ir.Model(marked.model.graph.clone(), ir_version=marked.model.ir_version, producer_name="srrc")
    expand(model, thresholds)
    return model


def _quantised(work: Work, marked: Marked, thresholds: Mapping[str, float], name: str) -> Session | None:
    """The file with these gates and quantised weights, for trying out; None where weights stay as they are."""
    if work.settings.precision not in BITS:
        return None
    path = _put(marked, thresholds, work.folder / f"{marked.interface.name}-{name}")
    with work.step("quantising"):
        return Session(quantise(path, BITS[work.settings.precision]), work.settings.threads)


def _measured(work: Work, marked: Marked, dense: Session, reader: Reader) -> Measured:
    """What each gate that can stand in the file saves and costs."""
    settings = work.settings
    savings: dict[str, Saving] = {}
    seconds = 0.0
    gates = gates_in(marked.model)
    for members in _apart(gates):
        opened = dict.fromkeys(members, -1.0)
        every = _quantised(work, marked, opened, "every")
        if every is None:
            every = Session(
                _put(marked, opened, work.folder / f"{marked.interface.name}-every"), settings.threads
            )
        with work.step("timing gates"):
            groups = {gate: _cost(marked, gate) for gate in members}
            feeds = reader.calls()[-1].feeds
            seconds, found = measure_savings(dense, every, feeds, members, groups, settings.rounds)
        savings |= found
    return Measured(seconds, {gate: savings[gate] for gate in gates}, branches_of(marked.pathways))


def _apart(gates: list[str]) -> list[list[str]]:
    """Gates that may stand in one file without one inside of another."""
    out = [gate for gate in gates if gate.startswith("residual:") and not gate.endswith(COARSE)]
    inner = [gate for gate in gates if gate.endswith(BLOCKS)]
    others = [gate for gate in gates if gate not in {*out, *inner}]
    return [members for members in (out, inner, others) if members]


def _cost(marked: Marked, gate: str) -> tuple[float, float]:
    return marked.gates[gate].flops, marked.gates[gate].bytes


def _refuse_drift(quality: Quality, max_drift: float | None) -> None:
    if max_drift is not None and quality.kl > max_drift:
        raise DriftError(
            f"the gated model drifts {quality.kl:.4f} nats a token on held-out text, more than the {max_drift:g} that "
            "were allowed; nothing was written. Calibrate longer, or allow more"
        )
