"""Decoders under `backend="srr"` against eager: greedy tokens and logits in fp32, and what was found."""

import pytest

from srrc.models_zoo import families

GATED = {"residual": 4, "neuron": 2, "channel": 9, "vocab": 1, "attention": 2}
PATHWAYS = {
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma2": GATED,
    "gemma3": GATED,
    "phi3": GATED,
    "gpt2": GATED,
    "gpt-neox": GATED,
    "opt": GATED,
    "falcon": GATED | {"channel": 7},
    "mixtral": {"residual": 4, "channel": 7, "vocab": 1, "attention": 2, "expert": 2},
    "qwen2-moe": GATED | {"expert": 2},
}
"""Pathways by kind of each two-layer model."""


@pytest.mark.parametrize("name", PATHWAYS)
def test_greedy_tokens_and_logits_equal_eager(name: str, parity) -> None:
    run = parity(name)
    run.generate(2, 6)
    prefill, *decode = run.graphs()
    assert decode
    assert run.pathways() == PATHWAYS[name]
    regions, different = prefill.regions
    assert different < regions, "equal layers were not shared"
    assert run.fallbacks() == {}


def test_every_decoder_is_here() -> None:
    assert set(PATHWAYS) == {name for name in families.names() if families.tiny(name).kind == "decoder"}
