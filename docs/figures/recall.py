"""How often a request finds what was learned on its kind of text, and what that saves: the figures in docs/history.md.

    python docs/figures/recall.py MODEL PROFILE HISTORY [--requests 40] [--budget 0.6] [--bound 0.03]

Held-out prompts of 128 tokens, of each domain in turn, are answered with 16 tokens. Run it twice: the second process
finds the history of the first.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import StaticCache

import srrc
from srrc.models_zoo import texts

PROMPT, ANSWER = 128, 16


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("history", type=Path)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--bound", type=float, default=0.03)
    asked = parser.parse_args()
    model, tokenizer = srrc.models_zoo.load(asked.model, dtype=torch.float32)
    prompts = {}
    for domain in texts.domains():
        text = "\n\n".join(texts.split(domain, "heldout"))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        gap = (len(ids) - PROMPT) // asked.requests
        prompts[domain] = [torch.tensor([ids[at * gap :][:PROMPT]]) for at in range(asked.requests)]
    cache = StaticCache(config=model.config, max_cache_len=PROMPT + ANSWER)
    options = {
        "profile": asked.profile,
        "history": asked.history,
        "budget": asked.budget,
        "max_drift": asked.bound,
        "feedback": 0.1,
    }
    first: list[float] = []
    with torch.no_grad():
        model.forward(input_ids=torch.zeros((1, 1), dtype=torch.long), past_key_values=cache)
        model.compile(backend="srr", dynamic=False, options=options)
        for at in range(asked.requests):
            for domain in prompts:
                cache.reset()
                token = model(
                    input_ids=prompts[domain][at], past_key_values=cache, logits_to_keep=1
                ).logits.argmax(-1)
                for step in range(ANSWER - 1):
                    started = perf_counter()
                    token = model(input_ids=token, past_key_values=cache).logits[:, -1:].argmax(-1)
                    if step == 0:
                        first.append(perf_counter() - started)
                if at in {0, 1, asked.requests - 1}:
                    told = srrc.stats(model)
                    level, spent = told["drift"]["level"], told["flops_executed"] / told["flops_dense"]
                    print(
                        f"{domain:>10} {at:3}: first step {1e3 * first[-1]:.1f} ms, level {level:.4f}, {spent:.3f}"
                    )
    told = srrc.stats(model)["history"]
    print(f"first step of a request, median {1e3 * median(first):.1f} ms")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
