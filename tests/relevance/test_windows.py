from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.errors import ModelError
from srrc.relevance.windows import cut


def tokenizer(text: str, *, add_special_tokens: bool) -> dict[str, Any]:
    """Every character is one token: its place."""
    assert not add_special_tokens
    return {"input_ids": [int(word) for word in text.split()]}


def numbers(start: int, stop: int) -> str:
    return " ".join(map(str, range(start, stop)))


@given(
    tokens=st.integers(8, 3000),
    windows=st.integers(1, 9),
    length=st.integers(1, 200),
    batch=st.integers(1, 3),
    more=st.integers(0, 9),
)
def test_no_token_is_in_two_windows(tokens: int, windows: int, length: int, batch: int, more: int) -> None:
    found = cut(tokenizer, [numbers(0, tokens)], windows, length, batch, more)
    seen = [token for each in (*found.curves, *found.joint, *found.more) for token in each.flatten().tolist()]
    assert len(seen) == len(set(seen))
    assert found.curves
    assert found.joint
    shapes = {tuple(each.shape) for each in (*found.curves, *found.joint, *found.more)}
    assert len(shapes) == 1
    assert sum(len(each) for each in found.curves) <= -(-windows // batch) * batch


def test_enough_text_gives_what_was_asked() -> None:
    found = cut(tokenizer, [numbers(0, 500), numbers(500, 1000)], 6, 50, 2, 3)
    assert [tuple(each.shape) for each in found.curves] == [(2, 50)] * 3
    assert [tuple(each.shape) for each in found.joint] == [(2, 50)]
    assert [tuple(each.shape) for each in found.more] == [(2, 50)] * 2
    everything = [*found.curves, *found.joint, *found.more]
    assert min(int(each.min()) for each in everything) == 0
    assert max(int(each.max()) for each in everything) == 999
    assert all((row.diff() == 1).all() for each in everything for row in each)


def test_too_little_text() -> None:
    with pytest.raises(ModelError, match="3 tokens are too little"):
        cut(tokenizer, ["1 2 3"], 4, 8, 2)
