"""Whether a gate's lists are those of the reference."""

from srrc.backends.triton.kernels.lists import Kept
from srrc.bench.gpu.record import Check, exact


def same_lists(kernel: str, case: str, found: Kept, truth: Kept) -> Check:
    """Everything that a gate's lists hold."""
    fields = ("units", "counts", "rows", "arrived")
    return exact(kernel, case, *((getattr(found, f), getattr(truth, f)) for f in fields))
