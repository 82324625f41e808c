"""What happens where srrc cannot do what was asked: the dense path, one warning, a counter; or an error, if strict."""

import warnings

from srrc.errors import SrrWarning, StrictError
from srrc.reasons import Refusal
from srrc.runtime.compiled_graph import CompiledGraph

_warned: set[tuple[str, str, str]] = set()


def fall_back(graph: CompiledGraph, refusal: Refusal, cause: BaseException | None = None) -> None:
    """Count `refusal` on `graph` and warn, once a process for one place and reason.

    Raises StrictError instead under `strict=True`.
    """
    message = f"{refusal.place} runs dense: {refusal.reason.value}"
    if refusal.detail:
        message += f" ({refusal.detail})"
    if graph.options.strict:
        raise StrictError(message) from cause
    graph.refusals.append(refusal)
    graph.fallbacks[refusal.reason.value] += 1
    key = (refusal.place, refusal.reason.value, refusal.detail)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, SrrWarning, stacklevel=3)
