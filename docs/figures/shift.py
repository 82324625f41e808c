"""Drift while the kind of text changes, with feedback and without: a table and a plot.

    python docs/figures/shift.py MODEL PROFILE OUT.png [--bound 0.02] [--calls 768] [--feedback 0.02] [--optimism 1]

Prose, then program code, then arithmetic are read token by token through the compiled decode step; drift of each
token is KL(dense, routed) against the eager model on the same text. With an optimism of 4, the profile is made to say a
quarter of what it measured, as one does that was calibrated on texts quite unlike these.
"""

import argparse
import dataclasses
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import srrc
from srrc.models_zoo import texts
from srrc.profile import Joint, Profile

WINDOW, PREFILL = 256, 64
AVERAGED = 100


def code() -> str:
    """Program code: modules of the standard library."""
    import argparse as a
    import asyncio.base_events as b
    import decimal as d
    import typing as t

    return "\n\n".join(inspect.getsource(module) for module in (a, b, t, d))


def windows(tokenizer: Any, calls: int) -> Iterator[tuple[str, Tensor]]:
    """(kind of text, ids [1, WINDOW]), as many of each kind as `calls` decode steps take."""
    kinds = {
        "prose": "\n\n".join(texts.split("essays", "heldout")),
        "code": code(),
        "arithmetic": "\n\n".join(texts.split("arithmetic", "heldout")),
    }
    for kind, text in kinds.items():
        ids = tokenizer(text[: 40 * calls], add_special_tokens=False)["input_ids"]
        for start in range(0, calls * WINDOW // (WINDOW - PREFILL), WINDOW):
            yield kind, torch.tensor([ids[start : start + WINDOW]])


def optimistic(profile: Profile, times: float) -> Profile:
    """The profile with every drift divided by `times`."""
    gates = {
        name: dataclasses.replace(gate, drift=gate.drift / times) for name, gate in profile.gates.items()
    }
    joint = tuple(
        Joint(point.added / times, point.measured / times, point.error / times) for point in profile.joint
    )
    return dataclasses.replace(profile, gates=gates, joint=joint)


def drifts(name: str, options: dict[str, object], calls: int) -> tuple[list[tuple[str, float]], Any]:
    """(kind, nats) of each decode step, and the model's stats."""
    from transformers import StaticCache

    torch._dynamo.reset()
    model, tokenizer = srrc.models_zoo.load(name, dtype=torch.float32)
    cache = StaticCache(config=model.config, max_cache_len=WINDOW)
    found = []
    with torch.no_grad():
        model.forward(input_ids=torch.zeros((1, 1), dtype=torch.long), past_key_values=cache)
        model.compile(backend="srr", dynamic=False, options=options)
        for kind, ids in windows(tokenizer, calls):
            dense = model.forward(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            cache.reset()
            model(input_ids=ids[:, :PREFILL], past_key_values=cache, logits_to_keep=1)
            for at in range(PREFILL, WINDOW):
                step = torch.tensor([[int(ids[0, at])]])
                routed = model(input_ids=step, past_key_values=cache).logits[0, -1].log_softmax(-1)
                found.append((kind, float((dense[at].exp() * (dense[at] - routed)).sum())))
    return found, srrc.stats(model)


def report(label: str, found: list[tuple[str, float]], bound: float) -> None:
    """A row a kind: mean drift, and after how many calls the mean of the last ones stays under the bound."""
    for kind in dict.fromkeys(kind for kind, _ in found):
        nats = torch.tensor([value for other, value in found if other == kind])
        means = nats.unfold(0, AVERAGED, AVERAGED // 4).mean(1)
        over = (means > bound).nonzero().flatten()
        settled = 0 if not len(over) else int(over[-1] + 1) * (AVERAGED // 4) + AVERAGED
        print(
            f"{label:>9} {kind:>10}: mean {nats.mean():.4f}, second half {nats[len(nats) // 2 :].mean():.4f}, "
            f"worst {AVERAGED} calls {means.max():.4f}, under the bound after {settled} of {len(nats)} calls"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--calls", type=int, default=768)
    parser.add_argument("--feedback", type=float, default=0.02)
    parser.add_argument("--optimism", type=float, default=1.0)
    asked = parser.parse_args()
    profile = optimistic(Profile.load(asked.profile), asked.optimism)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.5))
    for label, feedback in (("watched", asked.feedback), ("unwatched", 0.0)):
        options = {"profile": profile, "max_drift": asked.bound, "feedback": feedback}
        found, stats = drifts(asked.model, options, asked.calls)
        report(label, found, asked.bound)
        print(json.dumps({name: stats[name] for name in ("drift", "events", "history")}, default=str))
        nats = torch.tensor([value for _, value in found])
        axes.plot(nats.unfold(0, AVERAGED, 10).mean(1), label=f"feedback {feedback:g}")
        print(f"FLOPs {stats['flops_executed'] / stats['flops_dense']:.3f} of dense")
    axes.axhline(asked.bound, color="black", linestyle=":", label="max_drift")
    axes.set(xlabel="decode calls / 10", ylabel=f"KL, mean of {AVERAGED} calls", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(asked.out, dpi=120)


if __name__ == "__main__":
    main()
