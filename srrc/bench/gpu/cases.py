"""Which cases there are: modules beside this one, each with `checks` and `measurements`."""

CASES = (
    "gated_ops",
    "compiled_model",
    "decode",
    "listed_rows",
    "select",
    "sparse_linear",
    "gated_mlp",
    "vocab_head",
    "estimator",
    "block_attention",
    "grouped_linear",
    "kv_gather",
    "token_rows",
    "compact",
)
"""In the order in which they are run: a run that is cut off has told what matters most."""

LIMITS = {"compiled_model": 300.0}
"""Seconds of those that may take longer than others: models are calibrated, on the CPU."""

CEILINGS = "ceilings"
"""A module like theirs, run before them: what the card can do."""
