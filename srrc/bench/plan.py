"""How the process of each kind of variant compiles its model."""

from dataclasses import dataclass

from srrc.bench.settings import Settings
from srrc.bench.variants import Variant


@dataclass(frozen=True)
class Plan:
    """For which backend, and with srr, which profile and first budget.

    randomised: let the profile's gates choose by lot.
    """

    backend: str
    profile: str | None = None
    budget: float | None = None
    randomised: bool = False


def plan_for(kind: str, settings: Settings) -> Plan:
    """The plan of the process that serves the variants of `kind`."""
    backend = Variant(kind, kind).backend
    if kind not in {"routed", "random"}:
        return Plan(backend)
    return Plan(backend, str(settings.profile), settings.budgets[0], randomised=kind == "random")
