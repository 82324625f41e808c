"""State-space models: a recurrence in place of attention."""

from torch import nn

from srrc.models_zoo.families.tiny import HIDDEN, LAYERS, VOCAB, Family, draw_tokens


def _mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            state_size=8,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


FAMILIES = (Family("mamba", "state-space", _mamba, draw_tokens, generates=True),)
