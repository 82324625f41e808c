"""What a gate has saved, from what it counted."""

import torch

from srrc.runtime.gates import Gate


def gate(counters: list[int], **costs: float) -> Gate:
    return Gate("channel:w", "decode", torch.zeros(2), torch.tensor(counters), 2.0, 4.0, **costs)  # type: ignore[arg-type]


def test_deciding_is_taken_off():
    assert gate([100, 60, 0]).saved == (40 * 2.0 - 100 * 1.0, 40 * 4.0)


def test_rows_that_are_computed_together_read_each_weight_once():
    assert gate([400, 240, 0], rows=4).saved == (160 * 2.0 - 400, 40 * 4.0)


def test_what_a_row_costs_however_much_it_drops():
    found = gate([400, 240, 0, 4], rows=4, overhead=0.0, fixed_flops=10.0, fixed_bytes=6.0, spared_bytes=8.0)
    assert found.saved == (160 * 2.0 - 4 * 10.0, 40 * 4.0 + 8.0 - 4 * 6.0)
