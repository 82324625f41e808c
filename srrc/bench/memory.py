"""Memory of this process, as Linux counts it. Elsewhere nothing is known: None."""

import contextlib
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak() -> int | None:
    """Bytes resident at most, since the process began or since `reset_peak` (VmHWM)."""
    return _field("VmHWM")


def resident() -> int | None:
    """Bytes resident now (VmRSS)."""
    return _field("VmRSS")


def reset_peak() -> None:
    """Let `peak` start anew from what is resident now. Nothing changes where the kernel forbids it."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def _field(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None
