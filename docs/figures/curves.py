"""Drift and perplexity against the FLOPs that are left, for several profiles of one model: a table and a plot.

    python docs/figures/curves.py smollm2-135m OUT.png thresholds=a.srr router=b.srr joint=c.srr@out/adapter

Each profile, with the adapter after @ merged, is held against the model itself on held-out text. Labels that differ
only after a # are one training with several seeds: one curve of their means, in a band from the least to the most.
Beside them stand gates that choose by lot at the first profile's fractions, and by magnitude (|x| alone, one fraction
for all gates, as in TEAL, Liu et al. 2024). All are given the same counted FLOPs of decoding. Intervals are 95%, over
blocks of 16 tokens, paired with the model's own loss.
"""

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from srrc import models_zoo
from srrc.bench.statistics import mean_interval
from srrc.control.controller import default_phases, plan
from srrc.control.plan import PhaseCost, Record
from srrc.gated_model import GatedModel
from srrc.models_zoo import texts
from srrc.models_zoo.adapted import merged
from srrc.profile import Profile
from srrc.relevance import information
from srrc.relevance.information import Measured, Settings
from srrc.relevance.random_routing import randomised
from srrc.relevance.replay import Replay, closed

BUDGETS = (0.8, 0.7, 0.6, 0.5, 0.4)
WINDOWS, LENGTH = 8, 256

Records = Mapping[str, Record]


def windows(tokenizer: Any, part: texts.Part) -> dict[str, Tensor]:
    """Domain -> ids [WINDOWS, LENGTH], spread over it."""
    found = {}
    for domain in texts.domains():
        text = "\n\n".join(texts.split(domain, part))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = [at * (len(ids) - LENGTH) // WINDOWS for at in range(WINDOWS)]
        found[domain] = torch.tensor([ids[start : start + LENGTH] for start in starts])
    return found


def call(ids: Tensor) -> dict[str, Any]:
    """One call of the model."""
    return {"input_ids": ids, "use_cache": False}


def at_flops(profile: Profile, whole: PhaseCost, share: float) -> tuple[Records, float]:
    """The plan that leaves this share of the FLOPs `whole`, by bisection over budgets, and what it leaves."""
    phases = {"decode": dataclasses.replace(whole, gates={n: g.cost for n, g in profile.gates.items()})}
    low, high = 0.05, 1.0
    for _ in range(14):
        middle = 0.5 * (low + high)
        flops = plan(profile, budget=middle, phases=phases).flops
        low, high = (low, middle) if flops > share else (middle, high)
    found = plan(profile, budget=low, phases=phases)
    return found.thresholds["decode"], found.flops


def by_magnitude(profile: Profile, gated: GatedModel, seen: dict[str, Tensor]) -> Profile:
    """The profile with scores |x| and their quantiles. The head stays as it is: it has no channels to compare."""
    ones = {
        f"{name}/norm": torch.ones(gate.cost.units)
        for name, gate in profile.gates.items()
        if gate.kind != "vocab"
    }
    vectors = {name: held for name, held in profile.vectors.items() if not name.endswith("/emphasis")} | ones
    gates = {name: gate for name, gate in profile.gates.items() if gate.kind != "vocab"}
    made = dataclasses.replace(profile, gates=gates, vectors=vectors, joint=())
    gated.insert(made.covers, made.vectors)
    replay, measured = Replay(gated.gm, gated.gates), {name: Measured() for name in gates}
    for ids in seen.values():
        for part in ids.split(4):
            for _ in information.observe(
                replay, gated.arguments(call(part)), measured, Settings(skip_first=1)
            ):
                pass
    for entry in measured.values():
        entry.seal()
    gates = {
        name: dataclasses.replace(gate, quantiles=measured[name].quantiles) for name, gate in gates.items()
    }
    return dataclasses.replace(made, gates=gates)


def uniform(profile: Profile, whole: float, share: float) -> tuple[Records, float]:
    """One fraction for all gates."""
    gated = sum(gate.cost.units * gate.cost.flops for gate in profile.gates.values())
    fraction = (1 - share) * whole / gated
    records = {name: (gate.threshold(fraction), 0.0) for name, gate in profile.gates.items()}
    return records, 1 - fraction * gated / whole


def logits(gated: GatedModel, ids: Tensor, records: Records) -> Iterator[Tensor]:
    """Log-probabilities [rows, LENGTH, V], some windows at a time."""
    replay = Replay(gated.gm, gated.gates)
    for part in ids.split(4):
        with closed(records, gated.gates):
            yield gated.output(replay.finish(replay.begin(gated.arguments(call(part))), 0)).log_softmax(-1)


def judge(
    model: Any, gated: GatedModel, records: Records, held: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Domain -> kl and relative perplexity, with intervals; "all" over all of them."""
    kl: dict[str, list[float]] = {}
    loss: dict[str, list[float]] = {}
    for domain, ids in held.items():
        for part, routed in zip(ids.split(4), logits(gated, ids, records), strict=True):
            dense = model(part, use_cache=False).logits.log_softmax(-1)
            p, q, following = dense[:, 1:-1], routed[:, 1:-1], part[:, 2:, None]
            kl.setdefault(domain, []).extend((p.exp() * (p - q)).sum(-1).flatten().tolist())
            lost = p.gather(-1, following) - q.gather(-1, following)
            loss.setdefault(domain, []).extend(lost.flatten().tolist())
    kl["all"], loss["all"] = [*chain(*kl.values())], [*chain(*loss.values())]
    return {
        name: {"kl": mean_interval(kl[name]), "ppl": [*map(math.exp, mean_interval(loss[name]))]}
        for name in kl
    }


def main(name: str, image: str, *given: str) -> None:
    """Measure and plot."""
    model, tokenizer = models_zoo.load(name, dtype=torch.float32)
    held = windows(tokenizer, "heldout")
    example = call(held["docs"][:4])
    result: dict[str, dict[str, Any]] = {}
    first = Profile.load(given[0].partition("=")[2].partition("@")[0])
    whole = default_phases(first)["decode"]

    def run(label: str, gated: GatedModel, at: Callable[[float], tuple[Records, float]]) -> None:
        for budget in BUDGETS:
            records, flops = at(budget)
            found = judge(model, gated, records, held)
            result.setdefault(label, {})[f"{budget:g}"] = {"flops": flops, **found}
            (kl, low, high), ppl = found["all"]["kl"], found["all"]["ppl"]
            print(
                f"{label:>12} {flops:.3f}: KL {kl:.4f} +- {(high - low) / 2:.4f}, perplexity "
                f"{100 * (ppl[0] - 1):+.2f}% ({100 * (ppl[1] - 1):+.2f} to {100 * (ppl[2] - 1):+.2f}); "
                + ", ".join(f"{each} {100 * (found[each]['ppl'][0] - 1):+.2f}%" for each in held),
                flush=True,
            )
            Path(image).with_suffix(".json").write_text(json.dumps(result))

    for each in given:
        label, _, path = each.partition("=")
        path, _, adapter = path.partition("@")
        adapted = merged(copy.deepcopy(model), Path(adapter)).eval() if adapter else model
        profile = Profile.load(path)
        gated = GatedModel(adapted, example)
        gated.insert(profile.covers, profile.vectors)
        run(label, gated, lambda share, profile=profile: at_flops(profile, whole, share))  # type: ignore[misc]
    gated = GatedModel(model, example)
    plain = by_magnitude(first, gated, windows(tokenizer, "calibration"))
    run("magnitude", gated, lambda share: uniform(plain, whole.flops, share))
    lots = randomised(first)
    gated = GatedModel(model, example)
    gated.insert(lots.covers, lots.vectors)
    run("random", gated, lambda share: at_flops(lots, whole, share))
    draw(result, image)


def draw(result: Mapping[str, Mapping[str, Any]], image: str) -> None:
    """Both curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for label, points in result.items():
        seeds.setdefault(label.partition("#")[0], []).append(points)
    for label, each in seeds.items():
        _curve(left, label, each, "kl", lambda value: value)
        if label != "random":
            _curve(right, label, each, "ppl", lambda value: 100 * (value - 1))
    left.set(xlabel="FLOPs left", ylabel="KL, nats a token", yscale="log")
    right.set(xlabel="FLOPs left", ylabel="perplexity, % more", yscale="symlog")
    left.legend()
    figure.tight_layout()
    figure.savefig(image, dpi=120)


def _curve(
    axes: Any, label: str, seeds: list[Mapping[str, Any]], name: str, show: Callable[[float], float]
) -> None:
    """One curve of the means over seeds; error bars are of a single one's interval, the band is of the seeds."""
    flops = [mean(seed[at]["flops"] for seed in seeds) for at in seeds[0]]
    found = [[[show(value) for value in seed[at]["all"][name]] for seed in seeds] for at in seeds[0]]
    middle = [mean(value[0] for value in at) for at in found]
    bars = [mean((value[2] - value[1]) / 2 for value in at) for at in found]
    line = axes.errorbar(flops, middle, bars, marker="o", label=label)
    if len(seeds) > 1:
        low, high = ([pick(value[0] for value in at) for at in found] for pick in (min, max))
        axes.fill_between(flops, low, high, color=line.lines[0].get_color(), alpha=0.2)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
