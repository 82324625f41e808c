"""One answer under eager, inductor and srr, side by side.

Each backend runs in a process of its own, since copies of one model share Dynamo's compiled code.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from srrc.errors import SrrError

Row = dict[str, Any]
"""What `srrc generate --json` printed."""


def run_demo(
    model: str, prompt: str, *, max_new_tokens: int, budget: str, profile: str | None, dtype: str
) -> Iterator[tuple[str, Row]]:
    """(name of the variant, what its process printed), one after another.

    Raises SrrError with the last line of a process that failed.
    """
    shared = [model, "--prompt", prompt, "--max-new-tokens", str(max_new_tokens), "--dtype", dtype, "--json"]
    variants: list[tuple[str, Sequence[str]]] = [
        ("eager", ["--backend", "eager"]),
        ("inductor", ["--backend", "inductor"]),
        ("inductor, frozen and autotuned", ["--backend", "inductor-frozen"]),
        ("srr, exact", ["--backend", "srr"]),
    ]
    if profile is not None:
        routed = ["--backend", "srr", "--profile", profile, "--budget", budget]
        variants.append((f"srr, budget {budget}", routed))
    for name, arguments in variants:
        done = subprocess.run(
            [sys.executable, "-m", "srrc", "generate", *shared, *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise SrrError(f"the variant {name!r} failed: {lines[-1]}")
        yield name, json.loads(done.stdout)


def demo_table(rows: Sequence[tuple[str, Row]]) -> Table:
    """The variants side by side; a backend that counts no work did the dense model's, as srr counted that."""
    table = Table(
        "backend", "tokens/s", "first token", "compile", "MFLOP/token", "MB/token", "drift (KL)", "tokens"
    )
    reference = rows[0][1]["tokens"]
    counted = next((row for _, row in rows if row["dense_flops_per_token"] is not None), None)
    for name, row in rows:
        source = row if row["flops_per_token"] is not None else counted
        dense = "" if source is row else "dense_"
        work = [source[f"{dense}{what}_per_token"] / 1e6 if source else None for what in ("flops", "bytes")]
        same = sum(left == right for left, right in zip(row["tokens"], reference, strict=False))
        table.add_row(
            name,
            f"{row['decode_tokens_per_s']:.1f}",
            f"{1000 * row['prefill_s']:.0f} ms",
            f"{row['compile_s']:.0f} s",
            *("" if value is None else f"{value:.1f}" for value in work),
            f"{row['kl']:.1e}",
            f"{same}/{len(reference)} as eager",
        )
    return table
