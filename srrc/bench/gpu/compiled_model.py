"""A whole model through `torch.compile(backend="srr")`: right at every budget, and quick beside Inductor.

A Llama with random weights, calibrated on the CPU, then moved to the card, where a token is decoded over a cache that
is full, by CUDA graphs as users have them. Needs NumPy and safetensors beside torch and Triton, as profiles do.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call

from srrc.bench.gpu.decode import Shape
from srrc.bench.gpu.llama import Decoder
from srrc.bench.gpu.record import Check, Measurement, Skipped, check, norm_check
from srrc.bench.gpu.timing import MODE, queued_milliseconds
from srrc.runtime.gates import reset_counters, set_records

NAME = "compiled_model"

SMALL = Shape(layers=2, hidden=512, heads=8, kv_heads=2, head=64, neurons=1024, vocabulary=2048, positions=64)
LARGE = Shape(layers=2, vocabulary=4096)
"""Layers of an 8B model: two, since each has to be calibrated, and a small head."""


class Handed(nn.Module):
    """A model whose caches are arguments, as a server has them: each request's lie elsewhere."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model, self.shape = model, model.shape
        self.names = [name for name, _ in model.named_buffers()]

    def forward(self, ids: Tensor, position: Tensor | None = None, *caches: Tensor) -> Tensor:
        """See `Decoder`; caches: keys and values of each layer, which are written to."""
        held = dict(zip(self.names, caches, strict=True)) if caches else {}
        return cast("Tensor", functional_call(self.model, held, (ids, position)))

    def caches(self, *, aligned: bool = True) -> list[Tensor]:
        """Such arguments, of random numbers; unaligned ones lie where a vector of a kernel's may not begin."""
        made = []
        for buffer in self.model.buffers():
            memory = torch.randn(buffer.numel() + 1, device=buffer.device, dtype=buffer.dtype)
            made.append((memory[:-1] if aligned else memory[1:]).view(buffer.shape))
        return made


def _profile(model: nn.Module, vocabulary: int, *, neurons: bool, texts: int, length: int) -> Any:
    for needed in ("numpy", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            raise Skipped(f"profiles need {needed}, which is not installed")
    from srrc.calibration import calibrate
    from srrc.profile import Profile

    name = f"{type(model).__name__}, {vocabulary} tokens, neurons {neurons}, {texts} texts of {length}.srr"
    path = None if MODE.kept is None else MODE.kept / name
    if path is not None and path.exists():  # the process that warmed this case had the same weights
        return Profile.load(path)
    batches = [(torch.randint(vocabulary, (1, length)),) for _ in range(texts)]
    profile = calibrate(model, batches=batches, neurons=neurons, quick=True, progress=False)
    if path is not None:
        profile.save(path)
    return profile


def _models(shape: Shape, *, neurons: bool, texts: int = 3, length: int = 16) -> tuple[Decoder, Any]:
    """A model and its profile, of so many texts of random tokens."""
    torch.manual_seed(0)
    model = Decoder(shape).eval()
    return model, _profile(model, shape.vocabulary, neurons=neurons, texts=texts, length=length)


def _routed(
    model: nn.Module, profile: Any, budget: float, caches: Sequence[Tensor] = (), **options: Any
) -> tuple[Any, list[Any]]:
    """`model` compiled anew, and the gates of its graph. By the function: a checkout has no entry points."""
    from srrc.backend import srr
    from srrc.report import compiled_graphs

    torch.compiler.reset()
    options = {"budget": budget, "profile": profile, "feedback": 0.0, "strict": True, **options}
    run = torch.compile(model, backend=srr, options=options)
    run(*_token(model), *caches)
    gates = compiled_graphs(model)[-1].gates
    return run, sorted(gates, key=lambda gate: gate.id)


def _token(model: nn.Module, number: int = 0) -> tuple[Tensor, Tensor]:
    """A token, and its place, the last of the cache."""
    assert isinstance(model, Decoder | Handed)
    ids = torch.full((1, 1), number % model.shape.vocabulary, device="cuda")
    return ids, torch.full((1,), model.shape.positions - 1, device="cuda")


def checks() -> Iterator[Check]:
    """With all gates open, against eager; with some closed, against the ops' references in the same graph."""
    yield from _handed()
    for neurons in (False, True):
        model, profile = _models(SMALL, neurons=neurons)
        model = model.to("cuda")
        case = "neurons before up" if neurons else "channels"
        with torch.no_grad(), _untimed():
            run, _ = _routed(model, profile, 1.0)
            yield check(NAME, f"{case}, all gates open", run(*_token(model)), model(*_token(model)))
            run, gates = _routed(model, profile, 0.5)
            _close_head(gates)
            records = {gate.id: gate.record.clone() for gate in gates}
            found = _told(run, model, gates)
            run, gates = _routed(model, profile, 0.5, cuda_graphs=True)
            _close_head(gates)
            again = _told(run, model, gates)
            with mock.patch("srrc.compiler._lower_to_card", return_value=[]):
                run, gates = _routed(model, profile, 0.5)
            for gate in gates:  # a plan may differ: it knows what a kernel skips
                gate.record.copy_(records[gate.id])
            truth = _told(run, model, gates)
            for told, (logits, counters) in (("", found), (", CUDA graphs", again)):
                # Rounding may move a value across its threshold, of some ten thousand.
                yield norm_check(NAME, f"{case}{told}, outputs", logits, truth[0], 1e-3)
                yield norm_check(NAME, f"{case}{told}, counters", counters, truth[1], 1e-3)


def _handed() -> Iterator[Check]:
    """Tokens of three requests in turn, by CUDA graphs over each one's own caches, one's unaligned; against eager.

    Also where the dense answer is computed ahead of each token, over the same caches and by the same CUDA graph.
    """
    torch.manual_seed(0)
    model = Handed(Decoder(SMALL).eval())
    profile = _profile(model, SMALL.vocabulary, neurons=False, texts=3, length=16)
    from srrc.report import compiled_graphs  # needs what profiles need

    model = model.to("cuda")
    for budget, feedback in ((1.0, 0.0), (0.5, 1.0)):
        case = f"caches as arguments, feedback {feedback}"
        requests = [model.caches(), model.caches(), model.caches(aligned=False)]
        with torch.no_grad(), _untimed():
            run, gates = _routed(model, profile, budget, requests[0], feedback=feedback, cuda_graphs=True)
            set_records(gates, {})  # where all are open by the budget there is nothing to measure
            twins = [[cache.clone() for cache in caches] for caches in requests]
            found, truth = [], []
            for number in range(12):  # each place is warmed up, recorded, and replayed
                (ids, last), at = _token(model, number), number % 3
                found.append(run(ids, last - number, *requests[at]))
                truth.append(model(ids, last - number, *twins[at]))
        yield check(NAME, f"{case}, outputs", torch.cat(found), torch.cat(truth), slack=2.0)
        kept, right = (torch.cat([cache for each in held for cache in each]) for held in (requests, twins))
        yield check(NAME, f"{case}, caches", kept, right, slack=2.0)
        if feedback:
            drift = compiled_graphs(model)[-1].drift
            yield Check(NAME, f"{case}, drift", math.nan if drift.last is None else abs(drift.last), 1e-6)


@contextmanager
def _untimed() -> Iterator[None]:
    """Neither what kernels take here nor what calls take decides anything."""
    measure = mock.patch("srrc.backends.triton.worth.measure", return_value=None)
    with measure, mock.patch("srrc.routing._follow"):
        yield


def _close_head(gates: list[Any]) -> None:
    """Drop nearly all channels of the head, which the plan leaves open. With more of them rounding would decide which
    tokens are exact. Raises ValueError where there is no such gate.
    """
    [head] = [gate for gate in gates if gate.id.startswith("vocab:")]
    head.record.copy_(torch.tensor([10.0, 0.0]))


def _told(run: Any, model: Decoder, gates: list[Any]) -> tuple[Tensor, Tensor]:
    """Logits of eight tokens, and how many units each gate that skips anything was asked for and kept, of those."""
    before = [gate.counters.clone() for gate in gates]
    logits = torch.cat([run(*_token(model, number)).clone() for number in range(8)])
    counters = [(gate.counters - old)[:2] for gate, old in zip(gates, before, strict=True)]
    at_work = [each for gate, each in zip(gates, counters, strict=True) if float(gate.record[0]) >= 0]
    return logits, torch.stack(at_work).float()


def measurements() -> Iterator[Measurement]:
    """A token of two layers of 8B at some budgets, beside Inductor's best; all by CUDA graphs."""
    shape = LARGE
    model, profile = _models(shape, neurons=False, texts=1, length=8)  # calibrating is most of it
    model = model.to("cuda", torch.bfloat16)
    dense = {}
    with torch.no_grad():
        for mode in ("reduce-overhead", "max-autotune"):
            torch.compiler.reset()
            run = torch.compile(model, mode=mode)
            dense[f"Inductor, {mode}"] = queued_milliseconds(partial(run, *_token(model)))
        read = 2.0 * (sum(k * n for k, n in shape.linears[:4]) * shape.layers + math.prod(shape.linears[4]))
        read += sum(cache.numel() * cache.element_size() for cache in model.buffers())
        yield Measurement(NAME, "8B, 2 layers, dense", min(dense.values()), dense, read)
        for budget in (0.5, 1.0, 0.75, 0.35):
            run, gates = _routed(model, profile, budget, cuda_graphs=True)
            ms = queued_milliseconds(partial(run, *_token(model)))
            reset_counters(gates)
            run(*_token(model))
            saved = sum(gate.saved[1] for gate in gates)
            told = f"{len(gates)} gates, {saved / read:.0%} of the bytes left out"
            yield Measurement(NAME, f"8B, 2 layers, budget {budget}", ms, dense, read - saved, config=told)
