"""Phase 3, joint fine-tuning: gates and LoRA adapters together, so that the model's output stays the full model's.

Every step draws a batch and a budget, runs the full model, and the adapted model under the budget's plan, and moves
adapters and gates against KL(full, routed), relative to what it was at first under this budget: tight budgets drift a
hundred times as much as loose ones, and would be all that is learned for. How gates learn is the variant: by the
straight-through estimator, with Gumbel noise beside it, or by REINFORCE with reward = -KL - price * cost, each row's
draw judged against another draw of the same batch (a baseline of two).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srrc.control.controller import plan
from srrc.gated_model import GatedModel
from srrc.profile import Profile
from srrc.training import state
from srrc.training.adapters import Adapters
from srrc.training.batches import Batches, seed_of
from srrc.training.deciding import AtFractions, Drawn
from srrc.training.distillation import distil
from srrc.training.log import Log
from srrc.training.routed import Routed, constant
from srrc.training.router import Router
from srrc.training.settings import Joint
from srrc.training.state import State
from srrc.training.workers import Workers

_SKIP = 1
_WARM_UP = 20
_CLIP = 10.0
_FIRST = 4
_LEAST = 1e-6


class JointTraining:
    """One training of phase 3; `run` does what is left of it.

    gated:   with the gates of `profile`
    batches: to train on; call: makes one call of the model of a batch
    router:  what gates start from
    """

    def __init__(
        self,
        gated: GatedModel,
        profile: Profile,
        batches: Batches,
        call: Callable[[Tensor], Any],
        router: Router,
        adapters: Adapters | None,
        settings: Joint,
    ) -> None:
        self._gated, self._batches, self._call, self._settings = gated, batches, call, settings
        self._routed, self._router, self._adapters = Routed(gated), router, adapters
        places = [node.name for node in gated.gm.graph.nodes if node.op == "placeholder"]
        adapted = set() if adapters is None else set(adapters.names)
        self._adapted = {
            index: gated.names[name] for index, name in enumerate(places) if gated.names.get(name) in adapted
        }
        self._fractions = {
            budget: {} if budget >= 1 else plan(profile, budget=budget).fractions
            for budget in settings.budgets
        }
        held = {} if adapters is None else {f"adapter/{n}": p for n, p in adapters.parameters.items()}
        self.parameters: dict[str, Tensor] = {
            **held,
            **{f"router/{name}": parameter for name, parameter in router.parameters.items()},
        }

    def run(self, path: Path, key: str, log: Log, workers: Workers, progress: State | None = None) -> State:
        """Train, from `progress` on where there is one. The state is kept at `path`."""
        settings = self._settings
        groups = [
            {"params": [p for n, p in self.parameters.items() if n.startswith(part)], "top": rate}
            for part, rate in (("adapter/", settings.rate), ("router/", settings.router_rate))
        ]
        optimiser = torch.optim.Adam(
            [group for group in groups if group["params"]], lr=1.0, betas=(0.9, 0.98)
        )
        held = State(key) if progress is None else progress
        if progress is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(held.tensors[name])
            state.restore_moments(optimiser, self.parameters, held.moments, held.step)
        for step in range(held.step, settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * _schedule(step, settings.steps)
            optimiser.zero_grad()
            numbers = self._step(step, workers.number, held.history)
            workers.average([p for p in self.parameters.values() if p.grad is not None])
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), _CLIP)
            optimiser.step()
            held.step = step + 1
            held.history.append(numbers)
            log(step + 1, numbers)
            if workers.number == 0 and (held.step % settings.every == 0 or held.step == settings.steps):
                held.tensors = dict(self.parameters)
                held.moments = state.keep_moments(optimiser, self.parameters)
                state.save(held, path)
        return held

    def _step(self, step: int, worker: int, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        draw = torch.Generator().manual_seed(seed_of(self._settings.seed, "draws", step, worker))
        budget = self._settings.budget(step, float(torch.rand((), generator=draw)))
        arguments = constant(self._gated.arguments(self._call(self._batches(step, worker))))
        with torch.no_grad():
            teacher = _rows(self._routed.outputs(arguments, None))
        fractions = self._fractions[budget]
        if self._settings.variant == "policy" and fractions:
            self._policy(arguments, teacher, fractions, draw)
        gumbel = self._settings.variant == "gumbel"
        learns = self._settings.variant != "policy"
        with torch.set_grad_enabled(True):
            router = self._router if learns else _Still(self._router)
            deciding = AtFractions(fractions, router, _SKIP, gumbel, draw)
            loss = distil(_rows(self._routed.outputs(self._with_adapters(arguments), deciding)), teacher)
            if loss.requires_grad:
                relative = loss / _at_first(history, f"kl/{budget:g}", loss.item())
                relative.backward()  # type: ignore[no-untyped-call]
        return {"kl": loss.item(), "budget": budget, f"kl/{budget:g}": loss.item()}

    def _policy(
        self, arguments: Sequence[Any], teacher: Tensor, fractions: Mapping[str, float], draw: torch.Generator
    ) -> None:
        """Add REINFORCE's gradient, from two draws of every row's emphasis."""
        with torch.no_grad():
            adapted = self._with_adapters(arguments)
        wanted = teacher.float().log_softmax(-1)
        rewards, draws = [], []
        for _ in range(2):
            drawn = Drawn(fractions, self._router, _SKIP, draw=draw)
            given = _rows(self._routed.outputs(adapted, drawn)).detach().float().log_softmax(-1)
            divergence = (wanted.exp() * (wanted - given)).sum(-1)
            kept = torch.stack(list(drawn.kept.values())).mean(0)[..., 0]
            rows = divergence.view(kept.shape[0], -1)
            rewards.append(-rows - self._settings.price * kept[:, _SKIP:])
            draws.append(drawn)
        for index, drawn in enumerate(draws):
            advantage = torch.nn.functional.pad(rewards[index] - rewards[1 - index], (_SKIP, 0))
            drawn.surrogate(advantage).backward()  # type: ignore[no-untyped-call]

    def _with_adapters(self, arguments: Sequence[Any]) -> list[Any]:
        found = list(arguments)
        if self._adapters is not None:
            for index, name in self._adapted.items():
                weight = found[index]
                found[index] = weight + self._adapters.delta(name).to(weight.dtype)
        return found


class _Still:
    """A router's shifts without a gradient: a policy's parameters learn from draws alone."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def shift(self, gate: str, features: Tensor) -> Tensor:
        return self._router.shift(gate, features).detach()


def _at_first(history: Sequence[Mapping[str, float]], name: str, now: float) -> float:
    """Mean of the first few values of that name, the one of now among them where there are few."""
    found = [numbers[name] for numbers in history if name in numbers][:_FIRST]
    found += [now] * (len(found) < _FIRST)
    return max(sum(found) / len(found), _LEAST)


def _rows(logits: Tensor) -> Tensor:
    return logits[:, _SKIP:].reshape(-1, logits.shape[-1])


def _schedule(step: int, steps: int) -> float:
    """Warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
