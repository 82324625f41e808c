"""Options: what is accepted, and the one line that says what is wrong with the rest."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.errors import OptionError
from srrc.options import LEVELS, Options, check_budget, parse_options

PROFILE = "somewhere.srr"


def test_nothing_given_is_exact() -> None:
    assert parse_options(None) == parse_options({}) == Options()
    assert Options().exact


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, 1.5, "half", True, [0.5], 0.0, -0.0])
def test_a_budget_outside_0_to_1_is_refused_with_its_value(budget: object) -> None:
    with pytest.raises(OptionError, match="budget=") as caught:
        parse_options({"budget": budget, "profile": PROFILE})
    assert "(0, 1]" in str(caught.value) or "[0, 1]" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(min_value=0.0, max_value=1.0, exclude_min=True))
def test_every_budget_in_0_to_1_is_taken_as_it_is(budget: float) -> None:
    assert check_budget(budget) == budget
    assert parse_options({"budget": budget, "profile": PROFILE}).exact == (budget == 1.0)


@given(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.binary(), st.booleans()))
def test_a_budget_is_a_fraction_or_an_error(value: object) -> None:
    try:
        budget = check_budget(value)
    except OptionError:
        return
    assert budget is None or 0.0 < budget <= 1.0


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("bugdet", "budget"), ("max_drfit", "max_drift"), ("profil", "profile"), ("dump", "dump_dir")],
)
def test_an_unknown_option_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{name}'; did you mean '{nearest}'"):
        parse_options({name: 1})


def test_an_option_like_no_other_gets_the_list() -> None:
    with pytest.raises(OptionError, match="known: budget, max_drift"):
        parse_options({"zzz": 1})


@pytest.mark.parametrize(
    "given",
    [
        {"max_drift": -0.1},
        {"max_drift": math.nan},
        {"max_drift": math.inf},
        {"max_drift": "little"},
        {"feedback": 2},
        {"feedback": -0.5},
        {"strict": 1},
        {"strict": "yes"},
        {"dump_dir": 3},
        {"profile": 3},
        {"levels": "channel"},
        {"levels": 3},
        {"levels": ["chanel"]},
    ],
)
def test_a_wrong_value_names_its_option(given: dict[str, object]) -> None:
    (name,) = given
    with pytest.raises(OptionError, match=name.removesuffix("s")):
        parse_options({"profile": PROFILE} | given)


@pytest.mark.parametrize("given", [{"budget": 0.5}, {"max_drift": 0.01}])
def test_less_than_everything_needs_a_profile(given: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"profile.*srrc\.calibrate"):
        parse_options(given)


def test_values_are_kept() -> None:
    options = parse_options(
        {"budget": 1, "levels": ["neuron"], "feedback": 0.25, "strict": True, "dump_dir": "somewhere"}
    )
    assert options == Options(
        budget=1.0, levels=frozenset({"neuron"}), feedback=0.25, strict=True, dump_dir=Path("somewhere")
    )
    assert parse_options({"levels": None}).levels == LEVELS
