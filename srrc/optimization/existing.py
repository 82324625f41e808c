"""An existing ONNX file as something to optimize: its graph, its pathways, its own calibration."""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from srrc.backends.onnx.decoding import first_inputs
from srrc.backends.onnx.gates import THRESHOLDS
from srrc.backends.onnx.interfaces import Interface
from srrc.backends.onnx.interfaces.base import BATCH, PAST, SEQUENCE
from srrc.backends.onnx.interfaces.draw import draw
from srrc.backends.onnx.lower import Marked
from srrc.backends.onnx.read.interface import load, read_interface
from srrc.backends.onnx.read.mark import mark
from srrc.backends.onnx.read.mirror import Mirror, mirror
from srrc.backends.onnx.tidy import tidy
from srrc.calibration import calibrate_graph
from srrc.calibration_inputs import QUICK, Inputs, text_windows
from srrc.compiler import Capture
from srrc.errors import ModelError
from srrc.gated_model import GatedGraph
from srrc.optimization.gate_source import gate_source
from srrc.optimization.settings import Settings
from srrc.optimization.texts import tokenizer_in
from srrc.passes.context import Context
from srrc.passes.copy_graph import copy_graph
from srrc.passes.find_pathways import FindPathways
from srrc.passes.insert_gates import InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pipeline import run_passes
from srrc.profile import Profile
from srrc.runtime.gates import GateStore


class Existing:
    """A file, read. Its weights stay where they are until they are looked at."""

    def __init__(self, path: Path) -> None:
        self.model: ir.Model = load(path)
        if any(value.name == THRESHOLDS for value in self.model.graph.inputs):
            raise ModelError(f"{path} has gates already; optimize the file it was made from")
        tidy(self.model)
        self.interface: Interface = read_interface(self.model, path)
        self._mirror: Mirror | None = None

    def calibrate(self, tokenizer: Any, settings: Settings) -> Profile:
        """A quick profile of the gates that can stand in it, by running it."""
        inputs = self._inputs(tokenizer)
        read = self._read(inputs.curves[0])
        weights = {read.fqns[name]: tensor for name, tensor in read.weights.items()}
        gated = _GatedFile(read, self.interface.outputs)
        coarse = settings.coarse
        return calibrate_graph(
            gated,
            weights,
            self.interface.name,
            inputs,
            layers=coarse is None,
            coarse=coarse,
            blocks=settings.blocks,
        )

    def mark(self, profile: Profile | None, settings: Settings) -> Marked:
        """The graph with the profile's gates. Raises ProfileError for a profile of other weights."""
        if profile is None:
            return Marked(self.interface, self.model, {}, (), ())
        read = self._mirror or self._read(draw(self.interface, {BATCH: 2, SEQUENCE: 16}))
        source = gate_source(profile, read.fqns, read.weights)
        context = Context(fqns=dict(read.fqns))
        gm = run_passes(
            (Normalise(), FindPathways()), fx.GraphModule(read.gm, copy_graph(read.gm.graph)), context
        )
        pathways = list(context.pathways)
        run_passes((InsertGates(source, settings.levels, read.fake_mode),), gm, context)
        gates = {gate.id: gate for gate in context.gates}
        for missed in mark(self.model, read, pathways, source, gates):
            del gates[missed]
        return Marked(self.interface, self.model, gates, pathways, context.refusals)

    def _read(self, feed: Mapping[str, Tensor]) -> Mirror:
        self._mirror = mirror(self.model, feed)
        return self._mirror

    def _inputs(self, tokenizer: Any) -> Inputs:
        """Windows of text for a decoder or an encoder that has a tokenizer; else random inputs."""
        example = self.interface.example
        reads = tokenizer_in(tokenizer)
        if reads is not None and "input_ids" in example:
            found = text_windows(reads, None, QUICK)
            calls = [
                [self._feed(window) for window in part] for part in (found.curves, found.joint, found.more)
            ]
            return Inputs(calls[0], calls[1], calls[2], skip_first=1)
        drawn = [draw(self.interface, {BATCH: 4, SEQUENCE: 32, PAST: 0}, seed) for seed in range(6)]
        return Inputs(drawn[:4], drawn[4:], (), skip_first=0)

    def _feed(self, window: Tensor) -> dict[str, Tensor]:
        if "past_key_values.0.key" in self.interface.example:
            return first_inputs(self.interface.example, window)
        drawn = draw(self.interface, {BATCH: window.shape[0], SEQUENCE: window.shape[1]})
        return {**drawn, "input_ids": window}


class _GatedFile(GatedGraph):
    """A mirror, for calibration to interpret."""

    def __init__(self, read: Mirror, outputs: Sequence[str]) -> None:
        super().__init__()
        self._read = read
        held = {name: weakref.ref(tensor) for name, tensor in read.weights.items()}
        self.capture(Capture(read.gm, read.fqns, held, {}, read.fake_mode, GateStore(), torch.device("cpu")))
        self.how = "logits" if "logits" in outputs else "values"
        self._index = list(outputs).index("logits") if "logits" in outputs else 0

    def arguments(self, inputs: Any) -> Sequence[Any]:
        """A feed by name, and then the weights."""
        held = [node.name for node in self._read.gm.graph.nodes if node.op == "placeholder"]
        return [
            *(inputs[name] for name in self._read.inputs),
            *(self._read.weights[name] for name in held if name in self._read.weights),
        ]
