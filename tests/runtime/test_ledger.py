"""The ledger: which calls it samples, what it says of them, and that it forgets."""

import torch
from torch import Tensor

from srrc.runtime.gates import Gate
from srrc.runtime.ledger import EVERY, LENGTH, Entry, Ledger


def gate(name: str, threshold: float = 0.5) -> tuple[Gate, Tensor]:
    counters = torch.zeros(3, dtype=torch.int64)
    return Gate(name, "decode", torch.tensor([threshold, 0.0]), counters, 2.0, 4.0), counters


def test_an_entry_is_the_difference_that_a_call_made() -> None:
    ledger = Ledger()
    (first, counted), (second, failing), (idle, _) = (
        gate("channel:a"),
        gate("channel:b", 2.0),
        gate("vocab:c"),
    )
    counted += torch.tensor([1000, 1000, 3])
    before = ledger.before([first, second, idle])
    counted += torch.tensor([64, 48, 0])
    failing += torch.tensor([64, 64, 1])
    ledger.after(65, [first, second, idle], before, {"channel:a": 1e-9})
    assert ledger.entries() == (
        Entry(65, "decode", "channel:a", 1e-9, 0.5, 0.75, True),
        Entry(65, "decode", "channel:b", None, 2.0, 1.0, False),
    )


def test_calls_are_sampled_from_the_first_on() -> None:
    assert [call for call in range(1, 3 * EVERY) if Ledger().due(call)] == [1, EVERY + 1, 2 * EVERY + 1]


def test_it_is_bounded_and_the_oldest_go_first() -> None:
    ledger = Ledger()
    one, counters = gate("channel:a")
    for call in range(LENGTH + 5):
        before = ledger.before([one])
        counters += torch.tensor([8, 4, 0])
        ledger.after(call, [one], before, {})
    entries = ledger.entries()
    assert len(entries) == LENGTH
    assert (entries[0].call, entries[-1].call) == (5, LENGTH + 4)
