"""Decoders: models that read tokens and write the next one."""

from typing import Any

from torch import nn

from srrc.models_zoo.families.tiny import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, VOCAB, Family, draw_tokens

_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GATED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    **_SPECIAL,
}
"""What the configurations of the Llama kind share: grouped queries and a gated MLP."""


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_GATED, tie_word_embeddings=True))


def _mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    # A window shorter than the longest test input, so that the sliding mask takes part.
    return MistralForCausalLM(MistralConfig(**_GATED, sliding_window=16))


def _qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_GATED))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_GATED, head_dim=16))


def _gemma2() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**_GATED, head_dim=16, query_pre_attn_scalar=16, sliding_window=16))


def _gemma3() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_GATED, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, layer_types=kinds
        )
    )


def _phi3() -> nn.Module:
    from transformers import Phi3Config, Phi3ForCausalLM

    # The original length is part of the rotary table's definition and must not exceed the positions.
    return Phi3ForCausalLM(Phi3Config(**_GATED, original_max_position_embeddings=POSITIONS))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=HIDDEN,
            n_inner=INNER,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=POSITIONS,
            **_SPECIAL,
        )
    )


def _gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=POSITIONS,
            **_SPECIAL,
        )
    )


def _opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            ffn_dim=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=POSITIONS,
            word_embed_proj_dim=HIDDEN,
            **_SPECIAL,
        )
    )


def _falcon() -> nn.Module:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            **_SPECIAL,
        )
    )


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2))


def _qwen2_moe() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **_GATED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        )
    )


FAMILIES = tuple(
    Family(name, "decoder", build, draw_tokens, generates=True)
    for name, build in {
        "llama": _llama,
        "mistral": _mistral,
        "qwen2": _qwen2,
        "qwen3": _qwen3,
        "gemma2": _gemma2,
        "gemma3": _gemma3,
        "phi3": _phi3,
        "gpt2": _gpt2,
        "gpt-neox": _gpt_neox,
        "opt": _opt,
        "falcon": _falcon,
        "mixtral": _mixtral,
        "qwen2-moe": _qwen2_moe,
    }.items()
)
