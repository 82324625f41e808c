"""What a kernel is measured beside: where one cannot be had, the measurement says why."""

from collections.abc import Callable
from dataclasses import dataclass, field

NOTE = 300
"""Characters of what an error says that are told."""


@dataclass
class Baselines:
    """ms: of those that ran, milliseconds by name; missing: of the others, why not."""

    ms: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def time(self, name: str, measure: Callable[[], float]) -> None:
        """Measure one that this torch, or this card, may not do."""
        try:
            self.ms[name] = measure()
        except Exception as error:  # noqa: BLE001 (whatever it is, the others are still to be measured)
            self.lacks(name, error)

    def lacks(self, name: str, error: Exception) -> None:
        """Tell why there is no such one."""
        self.missing[name] = f"{type(error).__name__}: {error}"[:NOTE]

    def also(self) -> "Baselines":
        """These, and room for more."""
        return Baselines({**self.ms}, {**self.missing})
