"""Text by domain: enough of it, of the right kind, and no paragraph on both sides of a split."""

import pytest

from srrc.errors import OptionError
from srrc.models_zoo import texts


@pytest.mark.parametrize("domain", texts.domains())
def test_the_parts_share_no_paragraph(domain: str) -> None:
    keys = [
        {key for text in texts.split(domain, part) for _, key in texts.paragraphs(text)}
        for part in texts.PARTS
    ]
    assert min(len(side) for side in keys) > 100
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(("domain", "words"), [("docs", 20_000), ("essays", 150_000), ("arithmetic", 40_000)])
def test_both_parts_are_large_and_come_in_the_same_order(domain: str, words: int) -> None:
    for part in texts.PARTS:
        found = texts.split(domain, part)
        assert sum(len(text.split()) for text in found) > words
        assert found == texts.split(domain, part)
        assert all(text.strip() for text in found)


def test_an_essay_starts_at_its_date_and_ends_before_the_next() -> None:
    found = texts.split("essays", "calibration") + texts.split("essays", "heldout")
    assert len(found) > 150
    assert sum("April 1990 a crack appeared" in text for text in found) == 1
    assert any(text.startswith("February 2021") and "April 1990" in text for text in found)


def test_worked_answers_carry_no_markup() -> None:
    for text in texts.split("arithmetic", "heldout"):
        assert "<<" not in text
        assert "####" not in text
        assert "\nThe answer is " in text


@pytest.mark.parametrize(("domain", "part"), [("poetry", "heldout"), ("docs", "test")])
def test_an_unknown_name_is_refused_with_the_known_ones(domain: str, part: str) -> None:
    with pytest.raises(OptionError, match=r"known: (docs|calibration)"):
        texts.split(domain, part)  # type: ignore[arg-type]


def test_a_repeated_paragraph_stays_only_where_it_came_first() -> None:
    assert list(texts._unrepeated(["a\n\nb", "b \n\n c", " b"])) == ["a\n\nb", " c"]
