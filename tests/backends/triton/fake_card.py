"""A card that is not there: what Inductor makes of a graph for a CUDA device, on any machine, and nothing is run.

    python fake_card.py FILE FUNCTION     JSON of what the file's FUNCTION(card) returns

A process of its own, without TRITON_INTERPRET: Triton takes its kernels for compiled or interpreted as it is imported.
"""

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

H100 = {
    "multi_processor_count": 132,
    "major": 9,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
}


class Driver:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return 9, 0


class Card:
    """Made by `card`: tensors on "cuda" are shapes without data, and what Inductor writes for them is kept.

    A graph cannot make tensors of data there, as `torch.tensor` does and so a dynamic cache of Transformers.
    """

    def __init__(self) -> None:
        self.written: list[str] = []

    def codes(
        self, model: Callable[..., Any], *args: Any, backend: Any = "inductor", **options: Any
    ) -> list[str]:
        """The wrapper code, with its kernels, of each graph that a call of the compiled model makes.

        options: of torch.compile. Its inputs and parameters are made with device="cuda", within `card`.
        """
        self.written.clear()
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model, backend=backend, **options)(*args)
        return [*self.written]


def _keep(graph: GraphLowering, written: list[str]) -> Any:
    """Instead of `compile_to_module`: a module that answers with tensors of the graph's shapes."""
    written.append(graph.codegen()[0].value)
    made = [_concrete(node) for node in graph.module.graph.output_node().args[0]]
    return SimpleNamespace(call=lambda inputs: [make() for make in made])


def _concrete(node: Any) -> Callable[[], Any]:
    """Makes what a node of a graph stands for: a tensor without data, a number, or itself where it is no node."""
    value = node.meta["val"] if isinstance(node, torch.fx.Node) else node
    if isinstance(value, torch.Tensor):
        size, stride = ([_hint(n) for n in numbers] for numbers in (value.shape, value.stride()))
        dtype, device = value.dtype, value.device
        return lambda: torch.empty_strided(size, stride, dtype=dtype, device=device)
    return lambda: _hint(value)


def _hint(number: Any) -> Any:
    return number.node.hint if isinstance(number, torch.SymInt) else number


def _serve_guards() -> None:
    """A PyTorch without CUDA has no guard of its devices: the one of "meta", which does nothing, serves."""
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14
    guards[cuda] = guards[cuda] or guards[meta]


@contextmanager
def card() -> Iterator[Card]:
    """Within, there seems to be an H100, of which everything is seen but memory and launches."""
    made = Card()
    properties = SimpleNamespace(
        **H100, minor=0, name="NVIDIA H100", total_memory=80 << 30, L2_cache_size=50 << 20, gcnArchName="",
        shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    )  # fmt: skip
    _serve_guards()
    hints = DeviceProperties(type="cuda", index=0, cc=90, **H100)
    with (
        pytest.MonkeyPatch.context() as patch,
        # Constants would be folded on the device.
        inductor_config.patch(
            force_disable_caches=True, compile_threads=1, joint_graph_constant_folding=False
        ),
        FakeTensorMode(),
    ):
        for interface in (torch.cuda, CudaInterface):
            patch.setattr(interface, "get_device_properties", lambda device=None: properties)
        patch.setattr(CudaInterface, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(DeviceProperties, "create", lambda device: hints)
        patch.setattr(driver, "_active", Driver())
        patch.setattr("torch._inductor.scheduler.has_triton", lambda *args: True)
        for passes in (joint_graph, post_grad):  # they would trace their patterns on the device
            patch.setattr(passes, "lazy_init", lambda *args, **options: None)
        patch.setattr(compile_fx, "get_input_idxs_to_check", lambda *args: [])  # whose alignment
        patch.setattr(GraphLowering, "compile_to_module", partialmethod(_keep, made.written))
        yield made


def main(file: str, function: str) -> None:
    """Print what the file's function returns, as JSON and alone."""
    name = Path(file).stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    with redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)
        with card() as made:
            returned = getattr(module, function)(made)
    sys.stdout.write(json.dumps(returned))


if __name__ == "__main__":
    main(*sys.argv[1:])
