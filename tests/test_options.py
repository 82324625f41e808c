"""Options: what is accepted, and the one line that says what is wrong with the rest."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.errors import OptionError
from srrc.options import LEVELS, Latency, Options, check_budget, check_fraction, parse_options

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
    assert budget is None or (budget.seconds > 0.0 if isinstance(budget, Latency) else 0.0 < budget <= 1.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("9 ms", 9e-3), ("0.5s", 0.5), (" 800us ", 8e-4), ("1e1 ms", 1e-2)]
)
def test_a_budget_may_be_a_time(text: str, seconds: float) -> None:
    budget = check_budget(text)
    assert isinstance(budget, Latency)
    assert budget.seconds == pytest.approx(seconds)
    assert not parse_options({"budget": text, "profile": PROFILE}).exact
    with pytest.raises(OptionError, match="is a time"):
        check_fraction(text)


@pytest.mark.parametrize("text", ["0 ms", "-1 ms", "ms", "9", "9 minutes", "..1 ms", "nan ms", "1e999 s", ""])
def test_a_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="neither a fraction nor a time"):
        check_budget(text)


@pytest.mark.parametrize(("name", "value"), [("context", 3), ("context", None), ("history", 4)])
def test_contexts_are_names_and_histories_files(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"{name}="):
        parse_options({name: value, "profile": PROFILE})


def test_a_history_needs_a_profile() -> None:
    with pytest.raises(OptionError, match="history needs"):
        parse_options({"history": "history.srr"})


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
