"""Which launch configuration of a kernel is the quickest on a card: measured once, and kept in the user's cache.

    chosen = lookup(key("sparse_linear", rows=1, inputs=4096, ...), configs(1), default, device)    never measures
    chosen = tune(key(...), configs(1), default, device, lambda config: lambda: launch(config))      does, once

A kernel's space is a handful of configurations that an engineer found worth it, not all that compile: each costs a
compilation of seconds at its first use, and of many that are close the luckiest would be chosen, not the best.
What is quickest changes with the card and with what Triton makes of the source, so each pair of them has a file of its
own, `CARD-CAPABILITY-triton-VERSION.json`, and in it each kernel with the sizes and dtypes that decide its launch:

    {KEY: {"config": {"block_k": 32, ...}, "milliseconds": 0.031, "of": {CONFIGURATION: milliseconds, or null}}}

with null for a configuration that never runs, for want of shared memory perhaps; what found the card full is missing,
and tried again. One process at a time measures (`alone.py`), and reads what another wrote meanwhile. Each renames a
whole file into place; a record that is lost when two do so at once is measured again.
"""

import contextlib
import json
import logging
import re
import statistics
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import triton
from torch._library.triton import set_wrap_triton_enabled

from srrc.backends.triton.alone import alone
from srrc.paths import cache_folder, cache_root

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("srrc.cache")

Config = TypeVar("Config", bound="DataclassInstance")
Call = Callable[[], object]

ROUNDS = 5
"""Times that each configuration is measured, after one that warms."""

LAUNCHES = 10
"""Launches of one measurement."""

ASLEEP = 4_000_000
"""Cycles for which the card waits, some two milliseconds, until all launches are queued: Python takes longer for one
than a card takes to run it."""


@dataclass(frozen=True)
class Record:
    """What was measured: the quickest configuration's fields, its time, and the time of each, None where it failed."""

    config: Mapping[str, object]
    milliseconds: float
    of: Mapping[str, float | None]


@dataclass
class _Known:
    """A card's records by key, and the file that new ones are kept in; None where that cannot be written."""

    records: dict[str, Record]
    path: Path | None


_lock = threading.Lock()
_cards: dict[str, _Known] = {}
_measuring = threading.Lock()
"""Held while one thread measures, as two would slow each other; `lookup` does not wait for it."""


def key(kernel: str, **facts: object) -> str:
    """A record's key: "sparse_linear rows=1 dtype=bfloat16", in the order given. A symbolic size finds no record."""
    return f"{kernel} {_words(facts)}"


def lookup(kernel_key: str, space: Sequence[Config], default: Config, device: torch.device) -> Config:
    """What was chosen for a card of this kind; `default` where nothing was, or what the space lacks by now.

    Raises nothing and asks the device for no more than its name, so that an op may call it while it is traced.
    """
    card = _card(device)
    record = None if card is None else _known(card).records.get(kernel_key)
    return default if record is None else _chosen(record, space, default)


def measured(kernel_key: str, device: torch.device) -> float | None:
    """Milliseconds of the quickest configuration, as recorded for a card of this kind; None where nothing was."""
    card = _card(device)
    record = None if card is None else _known(card).records.get(kernel_key)
    return None if record is None else record.milliseconds


def tune(
    kernel_key: str,
    space: Sequence[Config],
    default: Config,
    device: torch.device,
    run: Callable[[Config], Call],
    *,
    timer: Callable[[Call], float] | None = None,
    failed: list[Exception] | None = None,
) -> Config:
    """Measure the whole space, unless all of it was measured before; the quickest, and of equals the first.

    run:    makes the call that launches with a configuration. Where it or the call raises, for want of shared memory
            perhaps, the configuration is left out; where all do, `default` stays, and nothing is kept.
    timer:  milliseconds of a call; `events` by default
    failed: gets what was raised
    Raises torch.OutOfMemoryError where the card has no room for what a call needs.
    """
    card = _card(device)
    if card is None:
        return default
    with _measuring:
        known = _known(card)
        record = _complete(known, kernel_key, space)
        if record is None:
            with alone(known.path):
                _read_again(known)
                record = _complete(known, kernel_key, space)
                if record is None:
                    raised = [] if failed is None else failed
                    record = _measured(space, run, timer or partial(events, device), raised)
                    if record is None:
                        log.warning("no configuration of %s runs: %r", kernel_key, raised[-1])
                        return default
                    log.info("%s: %s", kernel_key, _words(record.config))
                    _keep(card, kernel_key, record)
    return _chosen(record, space, default)


def events(device: torch.device, call: Call) -> float:
    """The median milliseconds of a launch on `device`, which Triton is told of as the current one.

    More than a cache holds is written before each launch: a model reads its weights from memory too.
    """
    # torch would look at each launch first, to trace it.
    with torch.cuda.device(device), set_wrap_triton_enabled(False):
        return _events(call)


def _events(call: Call) -> float:
    wiped = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(LAUNCHES)]  # type: ignore[no-untyped-call]
    torch.cuda._sleep(ASLEEP)  # type: ignore[no-untyped-call]  # noqa: SLF001
    for start, end in pairs:
        wiped.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))


def _measured(
    space: Sequence[Config],
    run: Callable[[Config], Call],
    timer: Callable[[Call], float],
    failed: list[Exception],
) -> Record | None:
    """Configurations take turns, so that a clock that falls slows all alike; medians pass over what slows one."""
    calls: dict[int, Call] = {}
    times: dict[int, list[float]] = {at: [] for at in range(len(space))}
    again: set[int] = set()
    for _ in range(1 + ROUNDS):  # the first compiles, and is not counted
        for at in list(times):
            try:
                if at not in calls:
                    calls[at] = run(space[at])
                times[at].append(timer(calls[at]))
            except torch.OutOfMemoryError:  # nothing is known of it then
                raise
            except Exception as error:  # noqa: BLE001 (compilers and drivers raise what they like)
                log.info("%s is left out: %r", _words(asdict(space[at])), error)
                failed.append(error)
                del times[at]
                if _passes(error):
                    again.add(at)
    if not times:
        return None
    medians = {at: statistics.median(each[1:]) for at, each in times.items()}
    best = min(medians, key=lambda at: (medians[at], at))
    of = {_words(asdict(config)): medians.get(at) for at, config in enumerate(space) if at not in again}
    return Record(asdict(space[best]), medians[best], of)


def _passes(error: Exception) -> bool:
    """Whether it may run the next time: the machine or the card was full. Triton's launcher has no error for that."""
    return isinstance(error, MemoryError) or "out of memory" in str(error)


def _chosen(record: Record, space: Sequence[Config], default: Config) -> Config:
    return next((config for config in space if asdict(config) == record.config), default)


def _complete(known: _Known, kernel_key: str, space: Sequence[Config]) -> Record | None:
    """A record whose choice is in the space, and was made among all of it."""
    record = known.records.get(kernel_key)
    words = {_words(asdict(config)) for config in space}
    return record if record and _words(record.config) in words and words <= set(record.of) else None


def _words(facts: Mapping[str, object]) -> str:
    return " ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in facts.items())


def _card(device: torch.device) -> str | None:
    """The name of a card's file; None for a device that is none, or that cannot be asked."""
    if device.type != "cuda":
        return None
    try:
        card = torch.cuda.get_device_properties(device)
        name = f"{card.name} {card.major}.{card.minor} triton {triton.__version__}"
    except Exception:  # noqa: BLE001 (a build without CUDA, a forked process, a driver: each raises its own)
        return None
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()) + ".json"


def _known(card: str) -> _Known:
    """What is known of a card, from its file at first."""
    with _lock:
        if card not in _cards:
            path = cache_root() / "triton" / card
            _cards[card] = _Known(_read(path, logging.WARNING), path)
        return _cards[card]


def _read_again(known: _Known) -> None:
    """Take over what other processes wrote since the file was read."""
    if known.path is not None:
        records = _read(known.path, logging.DEBUG)
        with _lock:
            known.records |= records


def _read(path: Path, level: int) -> dict[str, Record]:
    """The records of a file. One that cannot be read is as good as none: its kernels are measured again."""
    try:
        entries = json.loads(path.read_text("utf-8")).items() if path.exists() else ()
        return {at: Record(dict(e["config"]), float(e["milliseconds"]), dict(e["of"])) for at, e in entries}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        log.log(level, "%s holds no launch configurations and is ignored: %r", path, error)
        return {}


def _keep(card: str, kernel_key: str, record: Record) -> None:
    """Add a record to the process's and, beside what other processes wrote meanwhile, to the file."""
    known = _known(card)
    with _lock:
        known.records[kernel_key] = record
        if known.path is None:
            return
        temporary = known.path.with_name(f".{card}.{uuid.uuid4().hex[:12]}")
        try:
            cache_folder("triton")
            records = _read(known.path, logging.DEBUG) | {kernel_key: record}
            temporary.write_text(json.dumps({name: asdict(each) for name, each in records.items()}, indent=1))
            temporary.replace(known.path)
        except OSError as error:  # a CacheError too
            log.warning("launch configurations are kept for this process alone: %s", error)
            known.path = None
            with contextlib.suppress(OSError):
                temporary.unlink()
