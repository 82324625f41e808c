"""What a gate has saved, from what it counted; gates' tensors, all at once."""

import torch

from srrc.runtime.gates import Gate, keep, read, restore, set_records, write


def gate(counters: list[int], **costs: float) -> Gate:
    return Gate("channel:w", "decode", torch.zeros(2), torch.tensor(counters), 2.0, 4.0, **costs)  # type: ignore[arg-type]


def test_deciding_is_taken_off():
    assert gate([100, 60, 0]).saved == (40 * 2.0 - 100 * 1.0, 40 * 4.0)


def test_rows_that_are_computed_together_read_each_weight_once():
    assert gate([400, 240, 0], rows=4).saved == (160 * 2.0 - 400, 40 * 4.0)


def test_what_a_row_costs_however_much_it_drops():
    found = gate([400, 240, 0, 4], rows=4, overhead=0.0, fixed_flops=10.0, fixed_bytes=6.0, spared_bytes=8.0)
    assert found.saved == (160 * 2.0 - 4 * 10.0, 40 * 4.0 + 8.0 - 4 * 6.0)


def test_tensors_of_several_gates_are_read_and_written_at_once():
    held = torch.arange(8)
    tensors = [held[:3], held[3:7], held[7:]]
    before = keep(tensors)
    assert read(tensors) == [[0, 1, 2], [3, 4, 5, 6], [7]]
    write(tensors, [[9, 8, 7], [6, 5, 4, 3], [2]])
    assert held.tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    restore(tensors, before)
    assert held.tolist() == [*range(8)]
    assert read([]) == []
    assert keep([]) == ()
    write([], [])


def test_a_plan_s_records():
    records = torch.zeros(3, 2)
    gates = [
        Gate(name, phase, records[at], torch.zeros(3, dtype=torch.int64), 1.0, 1.0)
        for at, (name, phase) in enumerate([("a", "decode"), ("a", "prefill"), ("b", "decode")])
    ]
    set_records(gates, {"decode": {"a": (0.5, 0.25)}})
    assert records.tolist() == [[0.5, 0.25], [-1.0, 0.0], [-1.0, 0.0]]
