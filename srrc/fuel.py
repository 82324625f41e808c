"""How many gates may be inserted: halved until an answer is right again, it names the gate that is wrong."""

import os

from srrc.errors import OptionError

FUEL_VARIABLE = "SRRC_FUEL"


def fuel() -> int | None:
    """How many gates `SRRC_FUEL` allows; None for all. Raises OptionError where it is no whole number."""
    given = os.environ.get(FUEL_VARIABLE)
    if given is None:
        return None
    if not given.isdigit():
        raise OptionError(f"{FUEL_VARIABLE}={given!r} is not a whole number of gates")
    return int(given)
