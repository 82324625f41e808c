"""What a worker measures, on a tiny model in this process."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srrc import models_zoo
from srrc.bench.plan import Plan
from srrc.bench.reading import read_logits
from srrc.bench.session import Session
from srrc.models_zoo import families

PROMPTS = [[5, 9, 77, 31, 8, 200], [60, 61, 62, 7, 7, 9]]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, *, dtype: torch.dtype | None = None) -> tuple[nn.Module, Any]:
        return families.tiny("llama").model.to(dtype=dtype), None

    monkeypatch.setattr(models_zoo, "load", load)


@pytest.fixture
def session() -> Session:
    made = Session("tiny", "float32", 16)
    made.compile(Plan("eager"), PROMPTS[:1])
    return made


def _greedy(prompt: list[int], count: int) -> list[int]:
    model = families.tiny("llama").model
    ids = torch.tensor([prompt])
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


def test_it_writes_what_the_model_writes(session: Session) -> None:
    begun = session.start("a", PROMPTS[:1], None)
    made = session.steps("a", 5, None)
    assert begun["tokens"] + made["tokens"] == _greedy(PROMPTS[0], 6)
    assert len(made["seconds"]) == 5
    assert min(made["seconds"]) > 0


def test_slots_that_take_turns_do_not_disturb_each_other(session: Session) -> None:
    written = {
        name: session.start(name, [prompt], None)["tokens"]
        for name, prompt in zip("ab", PROMPTS, strict=True)
    }
    for _ in range(3):
        for name in "ab":
            written[name] += session.steps(name, 2, None)["tokens"]
    assert written == {"a": _greedy(PROMPTS[0], 7), "b": _greedy(PROMPTS[1], 7)}


def test_reading_judges_every_token_as_the_whole_window_at_once_would(
    session: Session, tmp_path: Path
) -> None:
    window = [5, 9, 77, 31, 8, 200, 60, 61, 62]
    read = session.read("a", [window, window], 4, None, tmp_path / "logits", write=True)
    logits = families.tiny("llama").model(torch.tensor([window])).logits[0, 4:-1]
    expected = nn.functional.cross_entropy(logits, torch.tensor(window[5:]), reduction="none").tolist()
    assert read.loss == pytest.approx(expected * 2, rel=1e-4)
    assert read.kl == []
    again = session.read("b", [window, window], 4, None, tmp_path / "logits", write=False)
    assert again.loss == read.loss
    assert max(again.kl) < 1e-9
    assert again.same == [1] * 8
    assert again.apart == 0.0


def test_the_rows_of_a_batch_are_what_each_would_be_alone(tmp_path: Path) -> None:
    session = Session("tiny", "float32", 16, batch=2)
    session.compile(Plan("eager"), PROMPTS)
    tokens = session.start("", PROMPTS, None)["tokens"] + session.steps("", 5, None)["tokens"]
    assert [tokens[row::2] for row in range(2)] == [_greedy(prompt, 6) for prompt in PROMPTS]
    windows = [[5, 9, 77, 31, 8, 200, 60, 61, 62], [60, 61, 62, 7, 7, 9, 200, 8, 31]]
    both = session.read("", windows, 4, None, tmp_path / "logits", write=True)
    alone = Session("tiny", "float32", 16)
    alone.compile(Plan("eager"), PROMPTS[:1])
    singles = [alone.read("", [w], 4, None, tmp_path / "none", write=False).loss for w in windows]
    assert [both.loss[row::2] for row in range(2)] == [pytest.approx(loss, rel=1e-4) for loss in singles]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift_from_what_was_written_is_the_kl(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "logits"
    one = torch.tensor([2.0, 1.0, 0.0], dtype=dtype)
    other = torch.tensor([0.0, 1.0, 2.0], dtype=dtype)
    read_logits([(one, 0), (one, 0)], path, write=True)
    read = read_logits([(one, 0), (other, 0)], path, write=False)
    p, q = one.float().log_softmax(-1), other.float().log_softmax(-1)
    assert read.kl == pytest.approx([0.0, float((p.exp() * (p - q)).sum())], abs=1e-6)
    assert read.same == [1, 0]
    assert read.apart == 2.0


def test_a_model_gone_wrong_drifts_by_a_number(tmp_path: Path) -> None:
    path = tmp_path / "logits"
    read_logits([(torch.tensor([1.0, 2.0]), 0)], path, write=True)
    read = read_logits([(torch.tensor([math.nan, 2.0]), 0)], path, write=False)
    assert read.kl == [1e9]


def test_it_answers_requests_as_the_model_would(session: Session, letters: Any) -> None:
    session._tokenizer = letters
    prompts = [[5, 9, 77, 31], [60, 61, 62, 7, 7, 9]]
    tasks = [
        {"prompt": "".join(map(chr, prompt)), "most": 5, "stop": "", "temperature": 0.0} for prompt in prompts
    ]
    made = session.write("a", tasks, None)
    assert made["tokens"] == [_greedy(prompt, 5) for prompt in prompts]
    assert made["texts"] == [letters.decode(tokens) for tokens in made["tokens"]]
    assert made["work"] == {}


def test_an_answer_stops_where_it_is_told_to_and_noise_is_the_same_each_time(
    session: Session, letters: Any
) -> None:
    session._tokenizer = letters
    task = {"prompt": "ab", "most": 8, "stop": "", "temperature": 2.0}
    drawn = session.write("a", [task, task], None)["tokens"]
    assert drawn == session.write("a", [task, task], None)["tokens"]
    assert drawn[0] != drawn[1]  # each request has noise of its own
    stop = chr(drawn[0][2])
    ended = session.write("a", [{**task, "stop": stop}], None)
    assert ended["texts"] == [letters.decode(drawn[0]).split(stop)[0]]
    session.model.generation_config.eos_token_id = drawn[0][1]
    assert session.write("a", [task], None)["tokens"] == [drawn[0][:1]]


@pytest.mark.parametrize("guards", [True, False])
def test_without_guards_no_change_is_noticed(session: Session, guards: bool) -> None:
    session.compile(Plan("srr"), PROMPTS[:1])
    before = session.graphs()
    if not guards:
        session.leave_out_guards()
    try:
        session.model.model.layers[0].self_attn.scaling *= 2
        session.start("", PROMPTS[:1], None)
        assert (session.graphs() > before) == guards
    finally:
        torch.compiler.set_stance("default")
