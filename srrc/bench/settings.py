"""What one run of the bench measures and how often."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from srrc.errors import OptionError
from srrc.options import check_fraction

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5)

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """All that a run is made of; written into the JSON as it is.

    model:          as `srrc.models_zoo.load` takes it
    threads:        of every process
    batch:          rows of every call, each with a text of its own
    prompts:        how many prompts (batches of them) each dense variant continues
    rounds:         how many of them the routed variants continue too
    new_tokens:     tokens written after each prompt; also the tokens read of each held-out window
    prefill_length: tokens of each prompt
    slice_steps:    steps that a process decodes before the next one's turn
    heldout_tokens: tokens read in each domain, at least
    adapter:        folder of a LoRA adapter that the routed variants have in their weights; all are held against the
                    model without it
    tasks:          requests of each scenario that are written and scored; with any, nothing is timed
    guards:         whether Dynamo checks its guards on each call; without them, once it has warmed up, only those that
                    tell one compiled graph from another
    cold:           whether every process compiles into empty caches, and then another one into these;
                    otherwise the user's caches serve, and no compilation is timed
    """

    model: str
    dtype: str = "float32"
    threads: int = 1
    batch: int = 1
    prompts: int = 20
    rounds: int = 8
    new_tokens: int = 128
    prefill_length: int = 128
    slice_steps: int = 32
    heldout_tokens: int = 512
    budgets: tuple[float, ...] = BUDGETS
    profile: Path | None = None
    adapter: Path | None = None
    tasks: int = 0
    guards: bool = True
    cold: bool = True

    @property
    def cache_length(self) -> int:
        """Positions of the static cache, the same for every variant and every use."""
        return self.prefill_length + self.new_tokens

    def model_of(self, kind: str) -> str:
        """The name of the model that the process of a kind of variant loads."""
        routed = kind in {"routed", "random"} and self.adapter is not None
        return f"{self.model}+{self.adapter}" if routed else self.model

    def check(self) -> "Settings":
        """Itself. Raises OptionError for a value that cannot be measured with."""
        for name in ("threads", "batch", "prompts", "rounds", "new_tokens", "slice_steps", "heldout_tokens"):
            _whole(name, getattr(self, name), 1)
        _whole("prefill_length", self.prefill_length, 2)
        _whole("tasks", self.tasks, 0)
        if self.dtype not in DTYPES:
            raise OptionError(f"no dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        cores = os.cpu_count() or 1
        if self.threads > cores:
            raise OptionError(
                f"threads={self.threads} on {cores} cores measures the scheduler; give at most {cores}"
            )
        for budget in self.budgets:
            check_fraction(budget)
        if self.profile is not None and not self.profile.is_file():
            raise OptionError(f"no profile at {self.profile}; make one with `srrc calibrate`")
        if self.adapter is not None and not (self.adapter / "adapter_config.json").is_file():
            raise OptionError(f"no adapter in {self.adapter}; make one with `srrc train --phase joint`")
        if self.adapter is not None and self.profile is None:
            raise OptionError("an adapter is for routed variants, which need --profile")
        return replace(
            self, rounds=min(self.rounds, self.prompts), budgets=tuple(dict.fromkeys(self.budgets))
        )

    def judging(self, tasks: int) -> "Settings":
        """To judge quality alone: windows that hold every scenario's requests, and nothing that is there for times.

        Raises OptionError for no tasks.
        """
        _whole("tasks", tasks, 1)
        return replace(self, tasks=tasks, prefill_length=256, new_tokens=64, guards=True, cold=False)

    def quick(self) -> "Settings":
        """A smoke run: everything once, and little of it."""
        return replace(
            self,
            prompts=2,
            rounds=2,
            new_tokens=self.new_tokens if self.tasks else 8,
            prefill_length=self.prefill_length if self.tasks else 16,
            slice_steps=4,
            heldout_tokens=16,
            tasks=min(self.tasks, 1),
            cold=False,
        )


def parse_budgets(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.9,0.5". Raises OptionError for anything that is no budget."""
    found = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            raise OptionError(f"budgets={text!r}: {part.strip()!r} is not a number") from None
        budget = check_fraction(number)
        assert budget is not None
        found.append(budget)
    return tuple(found)


def _whole(name: str, value: int, least: int) -> None:
    if value < least:
        raise OptionError(f"{name}={value} is too little; give at least {least}")
