"""The figures of a run for people to read."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Speed, and what it costs: a row a variant; times are medians with their quartiles."""
    machine, settings = result["machine"], result["settings"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    batch = f", batch {settings['batch']}" if settings["batch"] > 1 else ""
    guards = "" if settings["guards"] else ", no guards"
    where = f"{result['model']}, {settings['dtype']}{batch}{guards}, {threads}, {machine['processor']}"
    if settings["tasks"]:
        titles = _judged(result)
        return [_table(f"{title}: {where}", columns, result) for title, columns in titles.items()]
    return [
        _table(f"Speed: {where}", _SPEED, result),
        _table("Work, memory, compilation, quality", _REST, result),
    ]


def _judged(result: Mapping[str, Any]) -> dict[str, "Columns"]:
    """Columns by title where quality alone was judged: text that was read, and requests that were answered."""
    rows = result["variants"]
    domains = list(dict.fromkeys(name for row in rows for name in row["domains"]))
    scenarios = {name: each["measure"] for row in rows for name, each in row["scenarios"].items()}
    read = [
        (f"{domain}: perplexity, KL, same token", functools.partial(_domain, domain)) for domain in domains
    ]
    written = [
        (f"{name}: {measure}, FLOPs", functools.partial(_scenario, name))
        for name, measure in scenarios.items()
    ]
    return {"Held-out text": (*_NAME, *read), "Requests": (*_NAME, *written)}


def _domain(name: str, row: Row) -> str:
    found = row["domains"].get(name)
    if found is None:
        return ""
    agreed = found["argmax_agreement"]
    parts = (_perplexity(found), _kl(found), "" if agreed is None else f"{agreed:.1%}")
    return ", ".join(part for part in parts if part)


def _scenario(name: str, row: Row) -> str:
    found = row["scenarios"].get(name)
    if found is None:
        return ""
    change, low = found["change"], found["change_interval"]
    by = "" if change is None or low is None else f" ({change:+.3f} +- {change - low[0]:.3f})"
    share = found["flops_of_dense"]
    return f"{found['score']:.3f}{by}" + ("" if share is None else f", {share:.2f}")


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
