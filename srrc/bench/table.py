"""The figures of a run for people to read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Speed, and what it costs: a row a variant; times are medians with their quartiles."""
    machine, settings = result["machine"], result["settings"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    batch = f", batch {settings['batch']}" if settings["batch"] > 1 else ""
    where = f"{result['model']}, {settings['dtype']}{batch}, {threads}, {machine['processor']}"
    return [
        _table(f"Speed: {where}", _SPEED, result),
        _table("Work, memory, compilation, quality", _REST, result),
    ]


def _table(title: str, columns: "Columns", result: Mapping[str, Any]) -> Table:
    table = Table(title=title)
    for name, _ in columns:
        table.add_column(name)
    for row in result["variants"]:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the table must know beside it."""
    for failed in result["failed"]:
        yield f"{failed['name']} is missing: {failed['error']}"
    for row in result["variants"]:
        greedy = row["greedy"]
        unequal = greedy is not None and greedy["prompts_equal"] < greedy["prompts"]
        if unequal and row["budget"] is None and result["settings"]["dtype"] == "float32":
            count = greedy["prompts"] - greedy["prompts_equal"]
            yield f"{row['name']} writes other tokens than eager on {count} prompts"
        if more := row["recompiled_while_measuring"]:
            yield f"{row['name']} compiled {more} more graphs while it was measured"
        for reason, count in row["fallbacks"].items():
            yield f"{row['name']} ran dense {count} times: {reason}"


def _time(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row[name]
        return "" if found is None else f"{found['median']:.1f} ({found['q1']:.1f}-{found['q3']:.1f})"

    return cell


def _speedup(base: str, what: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row["speedups"].get(base, {}).get(what)
        return "" if found is None else f"{found['median']:.2f}x"

    return cell


def _number(name: str, scale: float, digits: int) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        return "" if row[name] is None else f"{row[name] * scale:.{digits}f}"

    return cell


def _compile(row: Row) -> str:
    cold, warm = row["compile_cold_s"], row["compile_warm_s"]
    return "" if cold is None else f"{cold:.0f}" + ("" if warm is None else f" / {warm:.0f}")


def _perplexity(row: Row) -> str:
    if row["relative_perplexity"] is None:
        return "" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
    return f"{row['perplexity']:.2f} ({100 * (row['relative_perplexity'] - 1):+.2f}%)"


def _kl(row: Row) -> str:
    return "" if row["kl"] is None else f"{row['kl']:.1e}"


def _greedy(row: Row) -> str:
    found = row["greedy"]
    return "" if found is None else f"{found['prompts_equal']}/{found['prompts']}"


Columns = tuple[tuple[str, Callable[[Row], str]], ...]

_NAME: Columns = (("variant", lambda row: str(row["name"])),)

_SPEED: Columns = (
    *_NAME,
    ("ms a step", _time("decode_ms")),
    ("over inductor", _speedup("inductor", "decode")),
    ("over frozen", _speedup("inductor-frozen", "decode")),
    ("prefill ms", _time("prefill_ms")),
    ("over inductor", _speedup("inductor", "prefill")),
    ("over frozen", _speedup("inductor-frozen", "prefill")),
)

_REST: Columns = (
    *_NAME,
    ("MFLOP a token", _number("flops_per_token", 1e-6, 1)),
    ("MB a token", _number("bytes_per_token", 1e-6, 1)),
    ("peak MB", _number("peak_memory_bytes", 1e-6, 0)),
    ("compile s", _compile),
    ("perplexity", _perplexity),
    ("KL", _kl),
    ("as eager", _greedy),
)
