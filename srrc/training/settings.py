"""What a training is asked to do."""

from dataclasses import dataclass

from srrc.errors import OptionError

VARIANTS = ("straight-through", "gumbel", "policy")

BUDGETS = (0.8, 0.7, 0.6, 0.5, 0.4)
"""The curriculum: from few gates to many. At 1.0 nothing is routed, and fresh adapters would have nothing to learn."""


@dataclass(frozen=True)
class Joint:
    """Phase 3, gates and adapters together.

    steps:   how many; each is one batch of `rows` windows of `length` tokens
    rank:    of the LoRA adapters; 0 trains the gates alone
    rate:    the adapters' learning rate, at its highest; router_rate: the gates'
    budgets: plans to train under, from easy to hard; the first half of the steps brings them in one by one
    variant: how gates learn: `straight-through`, `gumbel`, or `policy` (REINFORCE on KL and cost)
    price:   of the policy: nats that the whole dense cost of a token is worth
    every:   steps between two states on disk
    Raises OptionError for numbers out of range.
    """

    steps: int = 400
    rows: int = 4
    length: int = 256
    rank: int = 16
    rate: float = 3e-4
    router_rate: float = 2e-3
    budgets: tuple[float, ...] = BUDGETS
    variant: str = "straight-through"
    price: float = 0.1
    seed: int = 0
    every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "length", "every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)!r} is not a whole number of at least 1")
        if self.rank < 0:
            raise OptionError(f"rank={self.rank!r} is negative; 0 trains the gates alone")
        if not self.budgets or not all(0 < budget <= 1 for budget in self.budgets):
            raise OptionError(f"budgets={self.budgets!r}; give fractions of the dense cost in (0, 1]")
        if self.variant not in VARIANTS:
            raise OptionError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")

    def budget(self, step: int, draw: float) -> float:
        """The budget of a step. draw: in [0, 1)."""
        brought_in = 1 + int(2 * len(self.budgets) * step / max(self.steps, 1))
        held = sorted(self.budgets, reverse=True)[: max(1, min(brought_in, len(self.budgets)))]
        return held[int(draw * len(held))]
