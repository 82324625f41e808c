"""What a run is asked to measure, and how it refuses nonsense."""

from pathlib import Path
from typing import Any

import pytest

from srrc.bench.plan import Plan, plan_for
from srrc.bench.settings import BUDGETS, Settings, parse_budgets
from srrc.bench.variants import variants
from srrc.errors import OptionError


def test_without_a_profile_nothing_is_routed() -> None:
    names = [variant.name for variant in variants(None, BUDGETS, profile=False)]
    assert names == ["eager", "inductor", "inductor-frozen", "srr"]


def test_with_a_profile_every_budget_is_beside_random_routing_in_one_process_each() -> None:
    found = variants(None, (0.9, 0.5), profile=True)
    assert [variant.name for variant in found][4:] == ["srr-0.9", "srr-0.5", "random-0.9", "random-0.5"]
    assert [variant.process for variant in found][4:] == ["routed", "routed", "random", "random"]
    assert [variant.exact for variant in found] == [True] * 4 + [False] * 4
    assert {variant.backend for variant in found[3:]} == {"srr"}


def test_the_order_is_eager_first_whatever_was_asked() -> None:
    assert [variant.name for variant in variants(["srr", "eager"], BUDGETS, profile=False)] == [
        "eager",
        "srr",
    ]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["inductr"], "did you mean 'inductor'"),
        (["tpu"], "known: eager"),
        (["routed"], "needs --profile"),
        (["random"], "needs --profile"),
    ],
)
def test_variants_that_cannot_be(kinds: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        variants(kinds, BUDGETS, profile=False)


def test_each_process_compiles_for_its_kind(tmp_path: Path) -> None:
    settings = Settings("m", profile=tmp_path / "p.srr", budgets=(0.8, 0.5))
    assert plan_for("inductor-frozen", settings) == Plan("inductor-frozen")
    assert plan_for("srr", settings) == Plan("srr")
    assert plan_for("routed", settings) == Plan("srr", str(tmp_path / "p.srr"), 0.8)
    assert plan_for("random", settings) == Plan("srr", str(tmp_path / "p.srr"), 0.8, randomised=True)


def test_an_adapter_is_for_the_routed(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    (tmp_path / "p.srr").touch()
    settings = Settings("m", profile=tmp_path / "p.srr", adapter=tmp_path).check()
    assert settings.model_of("eager") == settings.model_of("srr") == "m"
    assert settings.model_of("routed") == settings.model_of("random") == f"m+{tmp_path}"
    assert Settings("m", profile=tmp_path / "p.srr").model_of("routed") == "m"
    with pytest.raises(OptionError, match="need --profile"):
        Settings("m", adapter=tmp_path).check()
    with pytest.raises(OptionError, match="no adapter in"):
        Settings("m", profile=tmp_path / "p.srr", adapter=tmp_path / "none").check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "threads=0"),
        ({"threads": 4096}, "measures the scheduler"),
        ({"prompts": 0}, "prompts=0"),
        ({"new_tokens": -1}, "new_tokens=-1"),
        ({"prefill_length": 1}, "prefill_length=1"),
        ({"dtype": "float8"}, "no dtype 'float8'"),
        ({"budgets": (1.5,)}, "budget=1.5"),
        ({"profile": Path("missing.srr")}, "no profile at missing.srr"),
    ],
)
def test_settings_that_cannot_be_measured_with(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings("m", **given).check()


def test_check_takes_each_budget_once_and_no_more_rounds_than_prompts() -> None:
    checked = Settings("m", prompts=3, rounds=8, budgets=(0.5, 0.9, 0.5)).check()
    assert (checked.rounds, checked.budgets) == (3, (0.5, 0.9))


def test_budgets_of_a_text() -> None:
    assert parse_budgets("0.9, 0.5") == (0.9, 0.5)


@pytest.mark.parametrize(
    ("text", "message"), [("half", "'half' is not a number"), ("0", "budget=0"), ("nan", "nan")]
)
def test_budgets_that_are_none(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_budgets(text)
