"""The decoder of an encoder-decoder is judged on what it writes itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import srrc
from srrc.backends.onnx.interfaces import interfaces
from srrc.backends.onnx.session import Session
from srrc.optimization.reader_of import reader_of
from srrc.optimization.settings import Settings
from srrc.optimization.texts import heldout
from srrc.optimization.writing import SOURCES, WritingReader

SETTINGS = Settings(prompts=2, new_tokens=6, heldout_tokens=256, rounds=1, prefill=16, past=8)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "bart")), "whisper"]
)
def test_it_reads_text_and_writes_eagers_likeliest_tokens(
    name: str, tmp_path: Path, letters: Any, lively: Any
) -> None:
    torch._dynamo.reset()
    model = lively(name)
    decoder = interfaces(model)[1]
    reader = reader_of(model, letters, decoder, SETTINGS)
    assert isinstance(reader, WritingReader)
    (calls,) = reader.calls()
    assert calls.phase == "decode"
    assert len(calls.feeds) == SOURCES
    assert calls.feeds[0]["input_ids"].shape == (1, 1)
    assert [*calls.feeds[0]] == [*decoder.example]
    assert calls.feeds[0]["past_key_values.0.decoder.key"].shape[2] == 8
    sources = reader._sources()
    if name != "whisper":
        text = heldout(letters, 0, 256, 0).windows[0][0]
        assert torch.equal(sources["input_ids"].flatten(), text[: SOURCES * 16])
    expected = reader._written.tokens[:, :1]
    for _ in range(9):
        with torch.no_grad():
            logits = model(**sources, decoder_input_ids=expected, use_cache=False).logits
        expected = torch.cat((expected, logits[:, -1:].argmax(-1)), 1)
    written = reader._written.tokens
    assert len(set(written.flatten().tolist())) >= 4
    assert torch.equal(written, expected)

    report = srrc.optimize(model, tmp_path / "out", tokenizer=letters, settings=SETTINGS)
    assert report.files[1].parity.tokens == (SOURCES, SOURCES)
    assert [*report.files[1].latency] == ["decode"]
    session = Session(tmp_path / "out" / "decoder_model.onnx")
    (same,) = reader.quality(session, session, [{}])
    assert same.kl < 1e-9
    assert same.tokens == SOURCES * 9
    wrong = lively(name)
    with torch.no_grad():
        next(each for key, each in wrong.named_parameters() if "decoder" in key and each.dim() == 2).neg_()
    others = reader_of(wrong, letters, interfaces(wrong)[1], SETTINGS)
    assert others.tokens(session, {}) != (SOURCES, SOURCES), "tokens of another model are not eager's"


@pytest.mark.usefixtures("paying")
def test_gates_of_the_decoder_drift_on_it(tmp_path: Path, letters: Any, lively: Any) -> None:
    torch._dynamo.reset()
    settings = dataclasses.replace(SETTINGS, budget=0.6)
    report = srrc.optimize(lively("t5"), tmp_path / "out", tokenizer=letters, settings=settings)
    decoder = report.files[1]
    assert decoder.gates
    assert decoder.parity.tokens == (SOURCES, SOURCES)
    assert decoder.quality is not None
    assert decoder.quality.kl > 1e-6
