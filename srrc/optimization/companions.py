"""What stands beside a model's file for other programs: tokenizer, configuration, ONNX Runtime GenAI's."""

import json
import shutil
from pathlib import Path
from typing import Any

from srrc.backends.onnx.interfaces.base import Interface
from srrc.models_zoo.hugging_face import quiet_transformers

_GENAI_TYPES = frozenset({
    "chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gpt2", "gptoss", "granite", "internlm2", "llama",
    "mistral", "nemotron", "olmo", "phi", "phi3", "phimoe", "phi3small", "qwen2", "qwen3", "smollm3",
})  # fmt: skip
"""Types that ONNX Runtime GenAI runs as decoders; it treats them alike, so any other goes as a llama."""


def write_companions(model: Any, tokenizer: Any, interfaces: tuple[Interface, ...], folder: Path) -> None:
    """Write what there is to write: nothing for a model that is none of transformers'."""
    config: Any = getattr(model, "config", None)
    with quiet_transformers():
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(folder)
        generation: Any = getattr(model, "generation_config", None)
        if hasattr(generation, "save_pretrained"):
            generation.save_pretrained(folder)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(folder)
    (only, *others) = interfaces
    if (
        not others
        and "logits" in only.outputs
        and any(name.startswith("past_key_values") for name in only.example)
    ):
        settings = genai_config(model, only)
        (folder / "genai_config.json").write_text(json.dumps(settings, indent=4) + "\n", encoding="utf-8")


_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")
"""What stands beside a file and goes along: tokenizer, configuration, templates, vocabularies."""


def copy_companions(path: Path, folder: Path) -> None:
    """Copy what stands beside an ONNX file; a report of ours is not."""
    for pattern in _COMPANIONS:
        for each in path.parent.glob(pattern):
            if each.name != "srrc_report.json" and each.is_file():
                shutil.copyfile(each, folder / each.name)


def genai_config(model: Any, interface: Interface) -> dict[str, Any]:
    """The contents of `genai_config.json` for a decoder.

    The cache grows with each token, so past and present may not share a buffer.
    """
    config = model.config.get_text_config()
    keys = [tensor for name, tensor in interface.example.items() if name.endswith(".key")]
    inputs = {name: name for name in interface.example if not name.startswith("past_key_values")}
    inputs |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    heads = int(config.num_attention_heads)
    length = int(getattr(config, "max_position_embeddings", 2048))
    generation = getattr(model, "generation_config", None)
    kind = str(config.model_type)
    described: dict[str, Any] = {
        "type": kind if kind in _GENAI_TYPES else "llama",
        "vocab_size": int(config.vocab_size),
        "context_length": length,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": f"{interface.name}.onnx",
            "head_size": int(keys[0].shape[3]),
            "hidden_size": int(config.hidden_size),
            "num_attention_heads": heads,
            "num_hidden_layers": len(keys),
            "num_key_value_heads": int(keys[0].shape[1]),
            "inputs": inputs,
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(generation, name, None)
        value = getattr(config, name, None) if value is None else value
        if value is not None:
            described[name] = value
    if "pad_token_id" not in described and "eos_token_id" in described:
        end = described["eos_token_id"]
        described["pad_token_id"] = end[0] if isinstance(end, list) else end
    search = {
        "do_sample": False,
        "early_stopping": True,
        "max_length": length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
    return {"model": described, "search": search}
