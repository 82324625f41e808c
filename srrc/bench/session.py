"""One model in one process, decoding with a static cache, measured step by step.

Several variants may take turns in one session (`slot`: the budgets of one compiled model). Each has its own
contents of the one cache: a second cache would be compiled for anew.
"""

import inspect
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srrc import models_zoo
from srrc.bench.generation import compile_for
from srrc.bench.plan import Plan
from srrc.bench.reading import Read, read_logits
from srrc.bench.workload import batches
from srrc.errors import ModelError

Work = dict[str, float]
"""What srrc counted (`_COUNTED`). Empty for other backends."""

_COUNTED = ("calls", "flops_executed", "flops_dense", "bytes_executed", "bytes_dense")


class Session:
    """A loaded model; every method runs without gradients.

    batch: rows of every call
    fallbacks: what srrc ran dense, by reason, since the session began
    """

    def __init__(self, model: str, dtype: str, cache_length: int, batch: int = 1) -> None:
        from transformers import StaticCache

        self.model, self._tokenizer = models_zoo.load(model, dtype=getattr(torch, dtype))
        self._cache: Any = StaticCache(config=self.model.config, max_cache_len=cache_length)
        self._batch, self._length = batch, cache_length
        self.fallbacks: Counter[str] = Counter()
        self._backend = "eager"
        self._budget: float | None = None
        self._slot = ""
        self._contents: dict[str, Any] = {}
        self._tokens: dict[str, Tensor] = {}
        accepted = inspect.signature(self.model.forward).parameters
        # Transformers 5.24 gave the argument a new name.
        names = [name for name in ("cache", "past_key_values") if name in accepted]
        if not names:
            raise ModelError(
                f"{type(self.model).__name__} takes no past_key_values, so there is no decoding to time"
            )
        self._past = {names[0]: self._cache}
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        with torch.no_grad():
            # Through forward, which is never compiled: the cache's tensors must be there before Dynamo looks.
            self.model.forward(input_ids=torch.zeros((batch, 1), dtype=torch.long), **self._past)

    def weight_bytes(self) -> int:
        """Bytes of the parameters and buffers, tied ones once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in self.model.state_dict().values()
        }
        return sum(storages.values())

    def compile(self, plan: Plan, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """Compile, and run the prefill and one decode step twice.

        Returns seconds of the first run (`first_s`) and of the second (`second_s`).
        """
        self._backend, self._budget = plan.backend, plan.budget
        compile_for(self.model, plan.backend, _options(plan))
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            self.start("", prompts, plan.budget)
            self.steps("", 2, plan.budget)
            seconds.append(time.perf_counter() - begin)
        return {"first_s": seconds[0], "second_s": seconds[1]}

    def leave_out_guards(self) -> None:
        """From now on no guard is checked but those that tell one compiled graph from another."""
        torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)

    def start(self, slot: str, prompts: Sequence[Sequence[int]], budget: float | None) -> dict[str, Any]:
        """Prefill an empty cache with a batch of prompts of one length.

        Returns `seconds`, the first new `tokens`, and the `work` of it.
        """
        self._turn(slot, budget)
        self._cache.reset()
        ids = torch.tensor(prompts)
        begin = time.perf_counter()
        with torch.no_grad():
            token = self._prefill(ids)[:, -1:].argmax(-1)
        seconds = time.perf_counter() - begin
        self._tokens[slot] = token
        return {"seconds": seconds, "tokens": token.flatten().tolist(), "work": self._work()}

    def steps(self, slot: str, count: int, budget: float | None) -> dict[str, Any]:
        """Decode greedily. Returns `seconds` of each step, the `tokens` (those of a step together), and the `work`."""
        self._turn(slot, budget)
        token, seconds, tokens = self._tokens[slot], [], []
        with torch.no_grad():
            for _ in range(count):
                begin = time.perf_counter()
                token = self._step(token)[:, -1:].argmax(-1)
                seconds.append(time.perf_counter() - begin)
                tokens += token.flatten().tolist()
        self._tokens[slot] = token
        return {"seconds": seconds, "tokens": tokens, "work": self._work()}

    def read(
        self,
        slot: str,
        windows: Sequence[Sequence[int]],
        prefill: int,
        budget: float | None,
        reference: Path,
        write: bool,
    ) -> Read:
        """Read batches of windows: `prefill` tokens at once, then one decode step a token, judged on the next one.

        The logits are written to `reference`, or compared with those there (where it exists).
        """
        self._turn(slot, budget)

        def rows() -> Iterator[tuple[Tensor, int]]:
            for together in batches(windows, self._batch):
                self._cache.reset()
                self._prefill(torch.tensor([window[:prefill] for window in together]))
                for tokens, following in pairwise(
                    zip(*(window[prefill:] for window in together), strict=True)
                ):
                    # A slice of a longer tensor has other strides, for which Dynamo would compile again.
                    step = self._step(torch.tensor([[token] for token in tokens]))
                    yield from zip(step[:, -1], following, strict=True)

        with torch.no_grad():
            made = read_logits(rows(), reference, write=write)
        self._work()
        return made

    def write(self, slot: str, tasks: Sequence[Mapping[str, Any]], budget: float | None) -> dict[str, Any]:
        """Answer requests: prompts read densely, at once, then a decode step a token.

        tasks: fields of `srrc.bench.scenarios.Task`. Returns `texts`, `tokens` of each, and the `work` of the steps.
        """
        self._turn(slot, budget)
        with torch.no_grad():
            written = [self._answer(task, seed) for seed, task in enumerate(tasks)]
        texts = [self._tokenizer.decode(tokens) for tokens in written]
        ended = [
            text.split(task["stop"])[0] if task["stop"] else text
            for text, task in zip(texts, tasks, strict=True)
        ]
        return {"texts": ended, "tokens": written, "work": self._work()}

    def _answer(self, task: Mapping[str, Any], seed: int) -> list[int]:
        room = self._length - task["most"]  # a prompt that is longer loses its beginning, which is an example
        ids = torch.tensor([self._tokenizer(task["prompt"])["input_ids"][-room:]])
        draw = torch.Generator().manual_seed(seed)
        self._cache.reset()
        # Through forward, which is never compiled: each length would be compiled for.
        logits = self.model.forward(input_ids=ids, **self._past, **self._last_only).logits
        tokens: list[int] = []
        while len(tokens) < task["most"]:
            token = _chosen(logits[0, -1], task["temperature"], draw)
            if token in self._ends:
                break
            tokens.append(token)
            if task["stop"] and task["stop"] in self._tokenizer.decode(tokens):
                break
            logits = self._step(torch.tensor([[token]]))
        return tokens

    @property
    def _ends(self) -> Sequence[int]:
        """Tokens that end a text."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        return () if ends is None else ends if isinstance(ends, list) else [ends]

    def graphs(self) -> int:
        """How many graphs Dynamo has compiled. More after measuring than before means that times are off."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def _prefill(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, **self._past, **self._last_only).logits
        return logits

    def _step(self, token: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=token, **self._past).logits
        return logits

    def _turn(self, slot: str, budget: float | None) -> None:
        """Make the model and the cache as `slot` left them."""
        if slot != self._slot:
            self._contents[self._slot] = [_contents(layer) for layer in self._cache.layers]
            for layer, contents in zip(self._cache.layers, self._contents.pop(slot, ()), strict=False):
                _restore(layer, contents)
            self._slot = slot
        if budget is not None and budget != self._budget:
            from srrc.report import set_budget

            set_budget(self.model, budget)
            self._budget = budget

    def _work(self) -> Work:
        if self._backend != "srr":
            return {}
        from srrc.report import stats

        counted = stats(self.model, reset=True)
        self.fallbacks.update(counted["fallbacks"])
        return {name: float(counted[name]) for name in _COUNTED}


def _chosen(logits: Tensor, temperature: float, draw: torch.Generator) -> int:
    """The likeliest token; with a temperature, one drawn with noise that hangs on `draw` alone (Gumbel-max)."""
    if temperature == 0:
        return int(logits.argmax())
    noise = -torch.empty(logits.shape).exponential_(generator=draw).log()
    return int((logits.float() / temperature + noise).argmax())


def _options(plan: Plan) -> dict[str, object]:
    if plan.profile is None:
        return {}
    from srrc.profile import Profile
    from srrc.relevance.random_routing import randomised

    profile = Profile.load(plan.profile)
    return {"profile": randomised(profile) if plan.randomised else profile, "budget": plan.budget}


def _contents(layer: Any) -> dict[str, Any]:
    """What a layer of the cache holds: its tensors, and the numbers that some kinds of layer count with."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in vars(layer).items()
        if isinstance(value, Tensor | int)
    }


def _restore(layer: Any, contents: dict[str, Any]) -> None:
    for name, value in contents.items():
        if isinstance(value, Tensor):
            getattr(layer, name).copy_(value)
        else:
            setattr(layer, name, value)
