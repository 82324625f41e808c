"""How each kind of pathway gets its gates: one file a kind, each with `gate_ids` and `insert`."""
