"""Encoders, encoder-decoders, vision and state space under `backend="srr"` against eager, in fp32."""

import pytest

from srrc.models_zoo import families

ENCODER = {"residual": 4, "neuron": 2, "channel": 9, "attention": 2}
PAIR = {"residual": 10, "neuron": 4, "channel": 22, "vocab": 1, "attention": 6}
PATHWAYS = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": ENCODER | {"channel": 8},
    "t5": PAIR,
    "bart": PAIR,
    "whisper": PAIR,
    "vit": ENCODER,
    "clip": {"residual": 8, "neuron": 4, "channel": 18, "attention": 4},
    "resnet": {"residual": 2},
    "mamba": {"channel": 7, "vocab": 1},
}
"""Pathways by kind of each two-layer model."""

UNSHARED = {"resnet", "mamba"}
"""Families with nothing to share: convolutions, and a scan that no region may end in."""


@pytest.mark.parametrize("name", PATHWAYS)
def test_forward_and_greedy_tokens_equal_eager(name: str, parity) -> None:
    run = parity(name)
    run.forward(2, 6)
    assert run.pathways() == PATHWAYS[name]
    regions, different = run.graphs()[0].regions
    assert 1 <= different < regions or name in UNSHARED
    if run.tiny.generates:
        run.generate(2, 6)
    assert run.fallbacks() == {}


def test_every_family_that_is_no_decoder_is_here() -> None:
    assert set(PATHWAYS) == {name for name in families.names() if families.tiny(name).kind != "decoder"}
