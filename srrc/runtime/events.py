"""What changed while a model ran, for people: a bounded list of lines, each with its call, its kind and its numbers."""

import logging
import threading
from collections import Counter, deque
from dataclasses import dataclass, field

LENGTH = 1024
"""Events kept; the oldest go first."""

log = logging.getLogger("srrc.feedback")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    call: the graph's how-manieth
    kind: `plan`, `alarm`, `calm`, `explored`, `step`, `rollback` or `pace`
    text: what happened, as a sentence
    numbers: the same for programs
    """

    call: int
    kind: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"call {self.call}: {self.kind}: {self.text}"


class Events:
    """The events of one graph, oldest first, and how many there were of each kind. Thread-safe."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=LENGTH)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, call: int, kind: str, text: str, **numbers: float) -> None:
        """Remember one, and log it (`SRRC_LOGS=feedback`)."""
        event = Event(call, kind, text, numbers)
        with self._lock:
            self._events.append(event)
            self._counts[kind] += 1
        log.info("%s", event)

    def all(self) -> tuple[Event, ...]:
        """What is kept."""
        with self._lock:
            return tuple(self._events)

    def counts(self) -> dict[str, int]:
        """How many there were, by kind, those that are not kept any more included."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Count anew, and forget."""
        with self._lock:
            self._events.clear()
            self._counts.clear()
