"""From samples to the JSON that `srrc bench` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from srrc.bench.machine import describe_machine
from srrc.bench.quality import quality
from srrc.bench.samples import Samples
from srrc.bench.scores import agreed, scores
from srrc.bench.settings import Settings
from srrc.bench.statistics import ratios, spread
from srrc.bench.variants import BASELINES, Variant

Result = dict[str, Any]

_EAGER = "eager"


def make_result(
    settings: Settings, variants: Sequence[Variant], samples: Mapping[str, Samples], failed: Mapping[str, str]
) -> Result:
    """{"machine", "model", "settings", "variants": [...], "failed": [{"name", "error"}, ...]}."""
    alive = [variant for variant in variants if variant.process not in failed]
    kept = {variant.name: samples[variant.name] for variant in alive}
    return {
        "machine": describe_machine(settings.threads),
        "model": settings.model,
        "settings": {name: _plain(value) for name, value in asdict(settings).items()},
        "variants": [_row(variant, kept, settings) for variant in alive],
        "failed": [{"name": v.name, "error": failed[v.process]} for v in variants if v.process in failed],
    }


def _row(variant: Variant, samples: Mapping[str, Samples], settings: Settings) -> dict[str, Any]:
    mine = samples[variant.name]
    eager = samples.get(_EAGER)
    timed = settings.cold and variant.backend != _EAGER
    decode = spread([second for seconds in mine.slices.values() for second in seconds], 1000)
    prefill = spread(list(mine.prefills.values()), 1000)
    return {
        "name": variant.name,
        "kind": variant.kind,
        "budget": variant.budget,
        "decode_tokens_per_s": 1000 * settings.batch / decode["median"] if decode else None,
        "decode_ms": decode,
        "prefill_tokens_per_s": 1000 * settings.batch * settings.prefill_length / prefill["median"]
        if prefill
        else None,
        "prefill_ms": prefill,
        "speedups": {name: _speedup(samples[name], mine) for name in BASELINES if name in samples},
        **_work(mine, samples.values(), settings.batch),
        **_memory(mine),
        "compile_cold_s": _compile_seconds(mine.compiled) if timed else None,
        "compile_warm_s": _compile_seconds(mine.warm) if timed else None,
        **quality(mine.reads, eager.reads if eager else None),
        "scenarios": scores(mine.written, eager.written if eager else {}, settings.tasks),
        "greedy": _greedy(mine, eager),
        "fallbacks": mine.finished.get("fallbacks", {}),
        "recompiled_while_measuring": (mine.finished or mine.compiled).get("graphs", 0)
        - mine.compiled.get("graphs", 0),
    }


def _speedup(base: Samples, mine: Samples) -> dict[str, Any]:
    """How many times as fast as a baseline, slice by slice: over 1 is faster."""
    slices = sorted(base.slices.keys() & mine.slices.keys())
    prompts = sorted(base.prefills.keys() & mine.prefills.keys())
    return {
        "decode": ratios(
            [_middle(base.slices[key]) for key in slices], [_middle(mine.slices[key]) for key in slices]
        ),
        "prefill": ratios([base.prefills[key] for key in prompts], [mine.prefills[key] for key in prompts]),
    }


def _middle(seconds: Sequence[float]) -> float:
    found = spread(seconds)
    assert found is not None
    return found["median"]


def _work(mine: Samples, everyone: Any, batch: int) -> dict[str, Any]:
    """FLOPs and bytes a decoded token and a prefill, as srrc counts them.

    A backend that counts nothing computes the dense model, whose cost srrc counts beside.
    """
    counts = bool(mine.decode_work)
    source = mine if counts else next((other for other in everyone if other.decode_work), None)
    found: dict[str, Any] = {"counted": counts}
    for name in ("flops", "bytes"):
        which = f"{name}_executed" if counts else f"{name}_dense"
        steps, prefills = (source.decode_steps, len(source.prefills)) if source else (0, 0)
        found[f"{name}_per_token"] = source.decode_work[which] / steps / batch if source and steps else None
        found[f"{name}_per_prefill"] = source.prefill_work[which] / prefills if source and prefills else None
        dense = source.decode_work[f"{name}_dense"] / steps / batch if source and steps else None
        found[f"{name}_of_dense"] = found[f"{name}_per_token"] / dense if dense else None
    return found


def _memory(mine: Samples) -> dict[str, Any]:
    """Peaks of the process: since it loaded the model, since it compiled it, and the latter less the loaded."""
    peaks = [said.get("peak_bytes") for said in (mine.compiled, mine.finished)]
    known = [peak for peak in peaks if peak is not None]
    running, resident = peaks[1], mine.loaded.get("resident_bytes")
    return {
        "weight_bytes": mine.loaded.get("weight_bytes"),
        "loaded_memory_bytes": resident,
        "peak_memory_bytes": max(known, default=None),
        "running_peak_memory_bytes": running,
        "running_peak_over_loaded_bytes": None if running is None or resident is None else running - resident,
    }


def _compile_seconds(said: Mapping[str, Any]) -> float | None:
    """What the first run took beyond the second."""
    return max(0.0, said["first_s"] - said["second_s"]) if said else None


def _greedy(mine: Samples, eager: Samples | None) -> dict[str, Any] | None:
    """Prompts whose new tokens are all eager's, and tokens before the first other one, of all."""
    shared = sorted(mine.tokens.keys() & eager.tokens.keys()) if eager else []
    if not shared or eager is None:
        return None
    pairs = [(mine.tokens[key], eager.tokens[key]) for key in shared]
    common = [agreed(one, other) for one, other in pairs]
    return {
        "prompts": len(pairs),
        "prompts_equal": sum(one == other for one, other in pairs),
        "tokens": sum(len(other) for _, other in pairs),
        "tokens_before_first_difference": sum(common),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | list | tuple | None) else str(value)
