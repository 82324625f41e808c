"""The options of `torch.compile(model, backend="srr", options={...})`, validated once, frozen from then on."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from srrc.errors import OptionError

LEVELS = frozenset({"channel", "neuron", "vocab", "layer"})
"""Routing levels that can carry gates; `levels` picks among them."""

FEEDBACK = 0.01
"""Fraction of routed calls that are measured, unless asked otherwise."""


@dataclass(frozen=True)
class Latency:
    """A budget in time: seconds that one call may take while decoding. Written "9 ms" or "0.5 s"."""

    seconds: float

    def __str__(self) -> str:
        return f"{1e3 * self.seconds:g} ms"


Budget = float | Latency
"""A fraction of the dense cost, or a time."""


@dataclass(frozen=True)
class Options:
    """What a user may ask of the backend.

    budget: fraction of the dense cost that may be spent, in (0, 1], or a time a call may take, "9 ms". None or 1.0 is
        exact.
    max_drift: largest tolerated mean KL(dense, routed) in nats a token; it wins over `budget`.
    profile: a `srrc.Profile`, or the path of one; needed for any budget under 1.
    levels: which kinds of pathway may be gated, a subset of `LEVELS`.
    feedback: fraction of the routed calls that also run dense, to measure drift and to move the plan, in [0, 1].
    context: name of the texts to come (a user, a domain): what is learned on them stays apart from other names'.
    history: a file that keeps what was learned on each kind of text, from one process to the next.
    cuda_graphs: on a CUDA device, replay graphs of fixed sizes as CUDA graphs, by Inductor's cudagraph trees.
    strict: turn every fallback warning into an error.
    dump_dir: folder that receives each stage of the graph, the plan, and a reproducer on failure.
    """

    budget: Budget | None = None
    max_drift: float | None = None
    profile: object = None
    levels: frozenset[str] = LEVELS
    feedback: float = FEEDBACK
    context: str = ""
    history: Path | None = None
    cuda_graphs: bool = False
    strict: bool = False
    dump_dir: Path | None = None

    @property
    def exact(self) -> bool:
        """True where nothing but provably null work may be skipped."""
        return self.max_drift is None and dense(self.budget)


def dense(budget: Budget | None) -> bool:
    """Whether a budget lets everything be computed."""
    return budget is None or budget == 1.0


def parse_options(given: Mapping[str, object] | None) -> Options:
    """Check `given` and return it as `Options`.

    Raises OptionError for an unknown name (naming the nearest one) and for a value out of its range.
    """
    given = dict(given or {})
    known = [field.name for field in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise OptionError(f"unknown option {name!r}; {hint}")
    options = Options(
        budget=check_budget(given.get("budget")),
        max_drift=_number("max_drift", given.get("max_drift"), low=0.0, high=math.inf),
        profile=_profile(given.get("profile")),
        levels=_levels(given.get("levels")),
        feedback=_fraction("feedback", given.get("feedback"), FEEDBACK),
        context=check_context(given.get("context", "")),
        history=_path("history", given.get("history")),
        cuda_graphs=_flag("cuda_graphs", given.get("cuda_graphs", False)),
        strict=_flag("strict", given.get("strict", False)),
        dump_dir=_path("dump_dir", given.get("dump_dir")),
    )
    if not options.exact and options.profile is None:
        raise OptionError(
            "a budget under 1.0 or a max_drift needs options={'profile': ...}; make one with srrc.calibrate()"
        )
    if options.history is not None and options.profile is None:
        raise OptionError("a history needs options={'profile': ...}: it keeps what is learned about gates")
    return options


def check_budget(value: object) -> Budget | None:
    """Return `value` as a budget: None, a fraction in (0, 1], or from a text such as "9 ms" a `Latency`.

    Raises OptionError otherwise.
    """
    if isinstance(value, Latency):
        return value
    if isinstance(value, str):
        return _latency(value)
    budget = _number("budget", value, low=0.0, high=1.0)
    if budget == 0.0:
        raise OptionError("budget=0 would compute nothing; give a fraction of the dense cost in (0, 1]")
    return budget


def check_fraction(value: object) -> float | None:
    """Return `value` as a budget that is no time. Raises OptionError otherwise."""
    budget = check_budget(value)
    if isinstance(budget, Latency):
        raise OptionError(f"budget={value!r} is a time; give a fraction of the dense cost in (0, 1]")
    return budget


def _latency(text: str) -> Latency:
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s)\s*", text, re.ASCII)
    try:
        seconds = float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise OptionError(
            f"budget={text!r} is neither a fraction nor a time; give a number in (0, 1], or a time such as '9 ms'"
        )
    return Latency(seconds)


def check_context(value: object) -> str:
    """Return `value` as the name of a context. Raises OptionError where it is no string."""
    if not isinstance(value, str):
        raise OptionError(f"context={value!r} is not a name; give a string, such as 'legal'")
    return value


def _number(name: str, value: object, *, low: float, high: float) -> float | None:
    if value is None:
        return None
    bounds = (
        f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a finite number of at least {low:g}"
    )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(f"{name}={value!r} is not a number; give {bounds}")
    if not math.isfinite(value) or not low <= value <= high:
        raise OptionError(f"{name}={value!r} is out of range; give {bounds}")
    return float(value)


def _fraction(name: str, value: object, default: float) -> float:
    found = _number(name, value, low=0.0, high=1.0)
    return default if found is None else found


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} is not True or False")
    return value


def _path(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError(f"{name}={value!r} is not a path")
    return Path(value)


def _profile(value: object) -> object:
    if isinstance(value, (str, os.PathLike)):
        return Path(value)
    if value is None or hasattr(value, "gates"):
        return value
    raise OptionError(f"profile={value!r} is neither a srrc.Profile nor a path of one")


def _levels(value: object) -> frozenset[str]:
    if value is None:
        return LEVELS
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise OptionError(
            f"levels={value!r} is not a list of level names; known: {', '.join(sorted(LEVELS))}"
        )
    for level in value:
        if level not in LEVELS:
            near = difflib.get_close_matches(str(level), sorted(LEVELS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(LEVELS))}"
            raise OptionError(f"unknown level {level!r}; {hint}")
    return frozenset(value)
