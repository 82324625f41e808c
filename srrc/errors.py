"""Every mistake that srrc reports, one class a kind of mistake.

All derive from `SrrError`, so that a caller can catch the family. The command line turns any of them into
one line on standard error and exit code 2.
"""


class SrrError(Exception):
    """Base of every error that srrc raises by itself. The message names the thing and the mend."""


class OptionError(SrrError, ValueError):
    """An option that is unknown, of the wrong type or out of its range."""


class ProfileError(SrrError, ValueError):
    """A profile that cannot be read, or that was made for other weights or by another version."""


class ModelError(SrrError, ValueError):
    """A model that cannot be found, loaded or run."""


class BuildError(SrrError, RuntimeError):
    """A native kernel that cannot be built or loaded."""


class DriftError(SrrError, ValueError):
    """A result that drifts further from the dense model than was allowed; the command line exits with 1."""


class CacheError(SrrError, OSError):
    """A cache folder that cannot be written or read."""


class StrictError(SrrError, RuntimeError):
    """Raised under `strict=True` where srrc would otherwise warn once and run the dense path."""


class SrrWarning(UserWarning):
    """A pathway, region or model runs dense (or slower than asked), and why."""
