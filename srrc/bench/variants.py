"""What is measured against what: the variants of one model, and which process serves each."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from srrc.errors import OptionError

KINDS = ("eager", "inductor", "inductor-frozen", "srr", "routed", "random")
"""`routed` stands for srr at every budget, `random` for gates that choose by lot at the same budgets."""

BASELINES = ("eager", "inductor", "inductor-frozen")
"""What speed is compared with."""


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    name:   unique: its kind, with the budget where it has one
    kind:   one of `KINDS`
    budget: fraction of the dense cost that may be spent; None for what computes everything
    """

    name: str
    kind: str
    budget: float | None = None

    @property
    def process(self) -> str:
        """Its worker. All budgets of a kind share one: moving between them compiles nothing."""
        return self.kind

    @property
    def backend(self) -> str:
        """The name that `srrc.bench.generation` compiles for."""
        return "srr" if self.kind in {"routed", "random"} else self.kind

    @property
    def exact(self) -> bool:
        """Whether its tokens must be eager's in fp32."""
        return self.budget is None


def variants(kinds: Sequence[str] | None, budgets: Sequence[float], *, profile: bool) -> list[Variant]:
    """The variants of the kinds asked for (None: all that can be), in the order of `KINDS`.

    profile: whether there is one; without it nothing can be routed.
    Raises OptionError for an unknown kind, and for a routed one without a profile.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KINDS)}"
            raise OptionError(f"no variant {kind!r}; {hint}")
        if kind in {"routed", "random"} and not profile:
            raise OptionError(f"the variant {kind!r} needs --profile; make one with `srrc calibrate`")
    wanted = [
        kind for kind in KINDS if (kind in kinds if kinds else profile or kind not in {"routed", "random"})
    ]
    found = []
    for kind in wanted:
        if kind in {"routed", "random"}:
            prefix = "srr" if kind == "routed" else "random"
            found += [Variant(f"{prefix}-{budget:g}", kind, budget) for budget in budgets]
        else:
            found.append(Variant(kind, kind))
    return found
