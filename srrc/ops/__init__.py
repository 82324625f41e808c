"""The ops of the namespace `srr`, one file each; importing this package registers them all.

Each file holds the schema, the reference in plain PyTorch (the truth that every kernel is tested against),
the fake and the gradient. A backend registers kernels for the same names when it is first used.
"""

from srrc.ops import (
    block_gate,
    channel_linear,
    coarse_head,
    coarse_linear,
    decode_attention,
    dense_linear,
    dense_mlp,
    layer_gate,
    neuron_mlp,
    prefill_attention,
    vocab_head,
)

__all__ = [
    "block_gate",
    "channel_linear",
    "coarse_head",
    "coarse_linear",
    "decode_attention",
    "dense_linear",
    "dense_mlp",
    "layer_gate",
    "neuron_mlp",
    "prefill_attention",
    "vocab_head",
]
