"""Graphs as Dynamo captures them, and the kernels that run here: native ones, and Triton's interpreted."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import fx, nn

from srrc.backends.cpu import build, toolchain
from srrc.backends.cpu.toolchain import CAPABILITIES, Capability
from srrc.passes.capture import parameter_names
from srrc.passes.context import Context
from srrc.passes.find_pathways import FindPathways
from srrc.passes.normalise import Normalise
from srrc.pathways.base import Pathway
from srrc.pathways.graph_view import GraphView

# A busy machine draws slowly, and takes its time.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def _import_interpreted() -> None:
    """Import the Triton kernels as its interpreter runs them, which needs no GPU.

    Triton decides for the interpreter where a function is decorated, its own library's too: so before anything else
    imports it, and the switch is back as it was for the tests that compile.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        kernels = importlib.import_module("srrc.backends.triton.kernels")
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"{kernels.__name__}.{module.name}")


if importlib.util.find_spec("triton") is not None:
    _import_interpreted()

WIDE = "wide"
"""Vectors as wide as AVX-512's, made of whatever this machine has: the same code, testable everywhere."""

BEST = toolchain.detect_capability()
RUNNABLE = list(CAPABILITIES)[: list(CAPABILITIES).index(BEST) + 1]


@pytest.fixture(scope="module", params=RUNNABLE if BEST == "avx512" else [*RUNNABLE, WIDE])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set whose kernels serve the ops while the module's tests run."""
    name = request.param
    if not build.ensure_built():
        pytest.skip(f"no native kernels: {build.refusal()}")
    patch = pytest.MonkeyPatch()
    patch.setitem(CAPABILITIES, WIDE, Capability(CAPABILITIES[BEST].flags, 64))
    used = build.capability()
    build.use_capability(name)
    yield name
    patch.undo()
    assert used is not None
    build.use_capability(used)


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        return {"input_ids": [ord(letter) % 256 for letter in text]}

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@dataclass
class Captured:
    """One graph of a model: `gm` as captured, and the arguments of its first call, as they were before it."""

    gm: fx.GraphModule
    context: Context
    inputs: list[Any] = field(default_factory=list)

    def copy(self) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.gm.graph, val_map={}))
        return fx.GraphModule(self.gm, graph)

    def normalised(self) -> fx.GraphModule:
        """A copy of the graph after `normalise`; it lints."""
        gm = Normalise()(self.copy(), self.context)
        gm.graph.lint()
        gm.recompile()
        return gm

    def find(self) -> fx.GraphModule:
        """Normalise a copy, find its pathways (into `context`), and return it."""
        return FindPathways()(self.normalised(), self.context)

    def view(self, gm: fx.GraphModule) -> GraphView:
        return GraphView(gm.graph, self.context.fqns)

    def of(self, kind: str) -> list[Pathway]:
        return [pathway for pathway in self.context.pathways if pathway.kind == kind]

    def refused(self, kind: str) -> list[tuple[str, str]]:
        return [(r.place, r.reason.name) for r in self.context.refusals if r.kind == kind]

    def arguments(self) -> list[Any]:
        """The call's arguments, each tensor that a graph may write to as a fresh copy."""
        return [_copied(value) for value in self.inputs]


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.clone()
    return value


Capture = Callable[..., list[Captured]]


def capture_graphs(run: Callable[[Callable[..., Any]], object]) -> list[Captured]:
    """Every graph that `run(backend)` compiles, in order of compilation."""
    graphs: list[Captured] = []

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        captured = Captured(gm, Context(fqns=parameter_names(gm, examples)))
        graphs.append(captured)

        def call(*args: Any) -> Any:
            if not captured.inputs:
                captured.inputs = [_copied(value) for value in args]
            return gm(*args)

        return call

    torch._dynamo.reset()
    with torch.no_grad():
        run(backend)
    return graphs


@pytest.fixture
def capture() -> Capture:
    """`capture(model, *args, dynamic=None, **kwargs)` -> the graphs of one forward call."""

    def graphs_of(
        model: nn.Module | Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any
    ) -> list[Captured]:
        return capture_graphs(
            lambda backend: torch.compile(model, backend=backend, dynamic=dynamic)(*args, **kwargs)
        )

    return graphs_of


@pytest.fixture
def capture_generate() -> Capture:
    """`capture_generate(model, **kwargs)` -> the graphs of one `model.generate(**kwargs)`."""

    def graphs_of(model: Any, **kwargs: Any) -> list[Captured]:
        def run(backend: Callable[..., Any]) -> None:
            model.compile(backend=backend)
            model.generate(**kwargs)

        return capture_graphs(run)

    return graphs_of


@pytest.fixture(scope="session", autouse=True)
def _inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Inductor compiles is kept for this session alone: no test passes by what an earlier run left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture
def every_gate_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """On so small a model few would save time, and which do depends on what else the machine does."""
    monkeypatch.setattr("srrc.compiler.gate_times", lambda calls: {})
