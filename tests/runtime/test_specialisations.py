"""Specialisations: a bounded LRU that compiles each signature once, whoever asks."""

import threading
import time
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrc.runtime.specialisations import Signature, Specialisations


def _signature(bucket: int) -> Signature:
    return Signature("decode", bucket)


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 4))
def test_it_is_an_lru(asked: list[int], capacity: int) -> None:
    cache, model, built = Specialisations(capacity), OrderedDict(), []
    hits = evictions = 0
    for bucket in asked:

        def build(bucket: int = bucket) -> object:
            built.append(bucket)
            return lambda: bucket

        assert cache.get(_signature(bucket), build)() == bucket
        hits += bucket in model
        model[bucket] = None
        model.move_to_end(bucket)
        if len(model) > capacity:
            model.popitem(last=False)
            evictions += 1
    assert (cache.hits, cache.misses, cache.evictions) == (hits, len(asked) - hits, evictions)
    assert len(built) == cache.misses


def test_signatures_differ_by_every_field() -> None:
    cache = Specialisations()
    signatures = [
        Signature("decode"),
        Signature("prefill"),
        Signature("decode", 4),
        Signature("decode", 4, "code"),
    ]
    for signature in signatures:
        assert cache.get(signature, lambda s=signature: lambda: s)() == signature
    assert cache.misses == len(signatures)


def test_eight_threads_build_once() -> None:
    cache, built, barrier = Specialisations(), [], threading.Barrier(8)

    def build() -> object:
        built.append(threading.get_ident())
        time.sleep(0.05)
        return lambda: 7

    def ask() -> None:
        barrier.wait()
        answers.append(cache.get(_signature(0), build)())

    answers: list[int] = []
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [7] * 8
    assert len(built) == 1
    assert (cache.hits, cache.misses) == (7, 1)


def test_a_build_that_raises_is_not_kept() -> None:
    cache = Specialisations()

    def fail() -> object:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get(_signature(0), fail)
    assert cache.get(_signature(0), lambda: lambda: 1)() == 1


def test_reset_keeps_what_is_compiled() -> None:
    cache = Specialisations()
    cache.get(_signature(0), lambda: lambda: 1)
    cache.reset_counts()
    assert (cache.hits, cache.misses, cache.evictions) == (0, 0, 0)
    assert cache.get(_signature(0), lambda: pytest.fail("built again"))() == 1
    assert cache.hits == 1
