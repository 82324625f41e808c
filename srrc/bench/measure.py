"""Asks the variants in turn: compile, prefill and decode slice by slice, read held-out text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srrc.bench.lineup import Lineup
from srrc.bench.plan import plan_for
from srrc.bench.samples import Samples
from srrc.bench.scenarios import SCENARIOS, Scenario
from srrc.bench.settings import Settings
from srrc.bench.variants import Variant
from srrc.bench.workload import Workload

_WARM_UP = 4
"""Steps before the first slice that counts."""


@dataclass(frozen=True)
class Run:
    """One run of the bench.

    folder: takes what the variants are compared with
    say:    tells what is going on
    """

    settings: Settings
    variants: Sequence[Variant]
    workload: Workload
    lineup: Lineup
    folder: Path
    say: Callable[[str], None]

    def measure(self) -> Iterator[dict[str, Samples]]:
        """Samples of every variant by name: of the speed first, then with each domain that was read, at last all.

        Those of a failed variant are incomplete (`lineup.failed`).
        """
        samples = {variant.name: Samples() for variant in self.variants}
        self.say("loading the model in every process")
        self._spread(samples, "loaded", self.lineup.ask_all("load", self._load_arguments))
        # One after another: they would take each other's processor, and their times count.
        self._spread(samples, "compiled", {name: self._compile(name, "") for name in self.lineup.names})
        if not self.settings.tasks:
            self._warm_up()
            if not self.settings.guards:
                self.lineup.ask_all("leave_out_guards")
            self._speed(samples)
            yield samples
        for domain, windows in self.workload.windows.items():
            self._read(samples, domain, windows)
            yield samples
        for scenario in SCENARIOS if self.settings.tasks else ():
            self._write(samples, scenario)
            yield samples
        self._spread(samples, "finished", self.lineup.ask_all("finish"))
        yield samples

    def measure_warm(self, samples: dict[str, Samples]) -> None:
        """Add what takes second processes; this ends the first ones. What fails here fails nothing else."""
        names, failed = self.lineup.names, dict(self.lineup.failed)
        for name in names:
            self.lineup.close(name)
        found = {}
        for name in names:
            if name != "eager":
                self.lineup.restart(name)
                self.lineup.ask(name, "load", **self._load_arguments(name))
                found[name] = self._compile(name, ", in a second process")
                self.lineup.close(name)
        self.lineup.failed.clear()
        self.lineup.failed.update(failed)
        self._spread(samples, "warm", found)

    def _spread(self, samples: dict[str, Samples], name: str, answers: dict[str, Any]) -> None:
        """Hand the answer of a process to each variant that it serves."""
        for variant in self.variants:
            setattr(samples[variant.name], name, answers.get(variant.process) or {})

    def _load_arguments(self, name: str) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": settings.model_of(name),
            "dtype": settings.dtype,
            "threads": settings.threads,
            "cache_length": settings.cache_length,
            "batch": settings.batch,
        }

    def _compile(self, name: str, again: str) -> Any:
        self.say(f"compiling for {name}{again}")
        plan = asdict(plan_for(name, self.settings))
        return self.lineup.ask(name, "compile", plan=plan, prompts=self.workload.prompts[0])

    def _ask(self, variant: Variant, do: str, **arguments: Any) -> Any:
        return self.lineup.ask(variant.process, do, slot=variant.name, budget=variant.budget, **arguments)

    def _warm_up(self) -> None:
        for variant in self.variants:
            self._ask(variant, "start", prompts=self.workload.prompts[0])
            self._ask(variant, "steps", count=_WARM_UP)

    def _speed(self, samples: dict[str, Samples]) -> None:
        settings, turn = self.settings, 0
        for index, prompts in enumerate(self.workload.prompts):
            self.say(f"prompt {index + 1} of {len(self.workload.prompts)}")
            present = [v for v in self.variants if v.exact or index < settings.rounds]
            for variant in _rotated(present, turn):
                begun = self._ask(variant, "start", prompts=prompts)
                if begun is not None:
                    mine = samples[variant.name]
                    mine.prefills[index], mine.tokens[index] = begun["seconds"], begun["tokens"]
                    mine.prefill_work.update(begun["work"])
            # The first new token came with the prefill.
            for part, done in enumerate(range(1, settings.new_tokens, settings.slice_steps)):
                turn += 1
                count = min(settings.slice_steps, settings.new_tokens - done)
                for variant in _rotated(present, turn):
                    made = self._ask(variant, "steps", count=count)
                    if made is not None:
                        mine = samples[variant.name]
                        mine.slices[index, part] = made["seconds"]
                        mine.tokens[index] += made["tokens"]
                        mine.decode_work.update(made["work"])

    def _read(self, samples: dict[str, Samples], domain: str, windows: Sequence[Sequence[int]]) -> None:
        """Eager comes first in the order of variants, and writes what the others are compared with."""
        for variant in self.variants:
            self.say(f"{variant.name} reads {domain}")
            read = self._ask(
                variant,
                "read",
                windows=windows,
                prefill=self.settings.prefill_length,
                reference=str(self.folder / f"{domain}.logits"),
                write=variant.kind == "eager",
            )
            if read is not None:
                samples[variant.name].reads[domain] = read

    def _write(self, samples: dict[str, Samples], scenario: Scenario) -> None:
        tasks = [asdict(task) for task in scenario.tasks(self.settings.tasks)]
        for variant in self.variants:
            self.say(f"{variant.name}: {scenario.name}")
            written = self._ask(variant, "write", tasks=tasks)
            if written is not None:
                samples[variant.name].written[scenario.name] = written


def _rotated(variants: Sequence[Variant], turn: int) -> list[Variant]:
    """Another order each time, so that no variant always follows the same one."""
    start = turn % len(variants)
    return [*variants[start:], *variants[:start]]
