"""Where srrc keeps what it fetched and built: one folder in the user's cache."""

import os
from pathlib import Path

from srrc.errors import CacheError

CACHE_VARIABLE = "SRRC_CACHE_DIR"
"""Environment variable that moves the cache."""


def cache_root() -> Path:
    """The cache folder, which may not exist yet: $SRRC_CACHE_DIR, or the platform's own place for caches."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    import platformdirs  # kernels are also checked where nothing but torch and Triton is installed

    return platformdirs.user_cache_path("srrc")


def cache_folder(*parts: str) -> Path:
    """A folder below `cache_root()`, made where it is missing.

    Raises CacheError where it cannot be made.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"cannot make the cache folder {folder} ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return folder
