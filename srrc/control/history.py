"""Execution history: what was learned on each kind of text, so that the next request of that kind finds it.

A history has contexts, which a user names (`context="legal"`), each with domains of its own, which are found online
(`srrc/control/domains.py`). To each domain belongs what was learned on its texts: the level that drift may have, what
each gate is believed to cost, and the plans that were made. Nothing passes from one context to another; a new domain of
a context begins with what its nearest one believes, and with a cautious level.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from srrc.control.beliefs import Beliefs
from srrc.control.domains import Domains
from srrc.control.plan import Plan
from srrc.control.regulator import Regulator
from srrc.control.trail import Trail

PLANS = 8
"""Plans kept of one domain; the least recently used goes first."""

CONTEXTS = 256
"""Contexts kept of one history; the least recently used goes first."""


@dataclass(eq=False)
class Learned:
    """What was learned on one domain of one context.

    beliefs:    of each gate's drift; `explored`: how many gates were tried; `trail`: what plans follow of it
    regulators: by bound (nats a token)
    plans:      by a key that says for what; `seconds`: what making each took
    """

    beliefs: Beliefs = field(default_factory=Beliefs)
    explored: int = 0
    trail: Trail = field(default_factory=Trail)
    regulators: dict[float, Regulator] = field(default_factory=dict)
    plans: OrderedDict[str, Plan] = field(default_factory=OrderedDict)
    seconds: float = 0.0

    def plan(self, key: str, make: Callable[[], Plan], clock: Callable[[], float] = perf_counter) -> Plan:
        """The plan under `key`, made where it is not there yet."""
        found = self.plans.get(key)
        if found is None:
            started = clock()
            found = self.plans[key] = make()
            self.seconds = clock() - started
            while len(self.plans) > PLANS:
                self.plans.popitem(last=False)
        self.plans.move_to_end(key)
        return found


@dataclass(eq=False)
class Space:
    """One context: its domains, and what was learned on each by the domain's name; `rest`: on texts of none."""

    domains: Domains = field(default_factory=Domains)
    learned: dict[int, Learned] = field(default_factory=dict)
    rest: Learned = field(default_factory=Learned)


class History:
    """The history of one model. Thread-safe.

    profile: a digest of the model's profile: what was learned with another is of no use
    hits, misses: requests whose domain was known with a plan made, and the others
    seconds_saved: what making those plans had taken
    """

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.spaces: OrderedDict[str, Space] = OrderedDict()
        self.hits = self.misses = self.evictions = 0
        self.seconds_saved = 0.0
        self.lock = threading.RLock()

    def space(self, context: str) -> Space:
        """The context of that name, made where it is not there yet."""
        with self.lock:
            found = self.spaces.get(context)
            if found is None:
                found = self.spaces[context] = Space()
                while len(self.spaces) > CONTEXTS:
                    self.spaces.popitem(last=False)
                    self.evictions += 1
            self.spaces.move_to_end(context)
            return found

    def find(self, context: str, vector: Tensor) -> Learned:
        """What was learned on texts like this one, without counting it: for texts too short to say more."""
        with self.lock:
            space = self.space(context)
            near = space.domains.near(vector)
            return space.rest if near is None else space.learned[near.name]

    def place(self, context: str, vector: Tensor) -> Learned:
        """What was learned on the domain of this text, which is founded where there is none."""
        with self.lock:
            space = self.space(context)
            nearest = space.domains.nearest(vector)
            domain, known = space.domains.place(vector)
            if known:
                return space.learned[domain.name]
            like = space.rest if nearest is None else space.learned[nearest[0].name]
            made = space.learned[domain.name] = Learned(Beliefs.of(like.beliefs.state()))
            alive = {each.name for each in space.domains.known}
            for name in space.learned.keys() - alive:
                del space.learned[name]
                self.evictions += 1
            return made

    def count(self, learned: Learned) -> None:
        """Count a request that found `learned`."""
        with self.lock:
            if learned.plans:
                self.hits += 1
                self.seconds_saved += learned.seconds
            else:
                self.misses += 1

    def reset_counts(self) -> None:
        """Start counting anew; what was learned stays."""
        with self.lock:
            self.hits = self.misses = self.evictions = 0
            self.seconds_saved = 0.0
