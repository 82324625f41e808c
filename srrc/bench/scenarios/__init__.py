"""Kinds of requests that a routed model is judged by, one a file."""

from srrc.bench.scenarios.arithmetic import ARITHMETIC
from srrc.bench.scenarios.base import Scenario, Task
from srrc.bench.scenarios.creative import CREATIVE
from srrc.bench.scenarios.factual import FACTUAL
from srrc.bench.scenarios.steps import STEPS

SCENARIOS: tuple[Scenario, ...] = (FACTUAL, CREATIVE, ARITHMETIC, STEPS)

__all__ = ["SCENARIOS", "Scenario", "Task"]
