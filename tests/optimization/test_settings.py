"""Settings are checked before anything is loaded."""

from typing import Any

import pytest

from srrc.errors import OptionError
from srrc.optimization.settings import Settings


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"budget": 0.0}, "would compute nothing"),
        ({"budget": 1.5}, "out of range"),
        ({"budget": "half"}, "neither a fraction"),
        ({"max_drift": -0.1}, "out of range"),
        ({"opset": 12}, "opset 12 is not supported; known: 23"),
        ({"precision": "float8"}, "no precision 'float8'; known: float32"),
        ({"coarse": 3}, "give 4 or 8 bits"),
        ({"threads": 0}, "threads=0"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"past": -1}, "past=-1"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        Settings(**given)


def test_exact_unless_asked() -> None:
    assert Settings().exact
    assert Settings(budget=1.0).exact
    assert not Settings(budget=0.9).exact
    assert not Settings(max_drift=0.01).exact
