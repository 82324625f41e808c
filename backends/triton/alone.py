"""One process at a time measures: two on one card would time each other's load, and what they find is kept."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from srrc.paths import cache_folder

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("srrc.cache")

PATIENCE = 300.0
"""Seconds after which one measures beside another all the same."""

PAUSE = 0.05
"""Seconds between two looks at the lock."""


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Hold the lock of the file `path`, which is the system's: it goes with the process that holds it.

    Without one where the folder cannot be written, where the system has none, and for no path. Raises nothing.
    """
    with contextlib.ExitStack() as held:
        if path is not None and fcntl is not None:
            try:
                cache_folder("triton")
                file = held.enter_context(path.with_suffix(".lock").open("a"))
                _lock(file.fileno())
                held.callback(fcntl.flock, file.fileno(), fcntl.LOCK_UN)  # a forked process may have it open
            except OSError as error:  # a CacheError too
                log.info("%s is measured without a lock: %r", path.stem, error)
        yield


def _lock(file: int) -> None:
    """Raises OSError where another holds it for too long, or where files have no locks."""
    patience = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience:
                raise
            time.sleep(PAUSE)
        else:
            return
