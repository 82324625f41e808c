"""One measured generation: text, time to the first token, tokens per second, counted work, and drift.

The same static cache, prompt and greedy choice serve every backend, and a first run of equal shape is thrown
away, so that compilation is timed by itself.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from srrc.errors import ModelError, OptionError

BACKENDS = ("eager", "inductor", "inductor-frozen", "srr")
"""`inductor-frozen` is Inductor with freezing and max-autotune, the faster of its settings for decoding."""

_NO_TOKENIZER = "the model came without a tokenizer, so there is nothing to read a prompt with"


@dataclass(frozen=True)
class Generation:
    """What one generation gave.

    prefill_s: seconds from the call to the first new token. decode_tokens_per_s: over the tokens after it.
    compile_s: seconds of the first run beyond the second.
    flops_per_token, bytes_per_token: counted by srrc over the measured run, prefill included; None where the
        backend counts nothing. dense_...: what the dense model takes for the same run.
    kl: mean KL(dense, this) over the new tokens, in nats a token; the dense model is asked in eager mode.
    """

    backend: str
    text: str
    tokens: list[int]
    prefill_s: float
    decode_tokens_per_s: float
    compile_s: float
    flops_per_token: float | None
    bytes_per_token: float | None
    dense_flops_per_token: float | None
    dense_bytes_per_token: float | None
    kl: float
    stats: dict[str, Any] = field(default_factory=dict)


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    backend: str = "srr",
    options: Mapping[str, object] | None = None,
    max_new_tokens: int = 64,
    raw: bool = False,
) -> Generation:
    """Compile `model` in place for `backend` and let it continue `prompt` greedily.

    options: of the srr backend. raw: leave out the tokenizer's chat template.
    Raises OptionError for an unknown backend, options for another backend, and an empty prompt, ModelError
    for a model that writes no text.
    """
    inputs = encode(model, tokenizer, prompt, raw=raw)
    compile_for(model, backend, options)
    first = _timed(model, inputs, max_new_tokens)
    if backend == "srr":
        _stats(model, reset=True)
    second = _timed(model, inputs, max_new_tokens)
    stats = _stats(model) if backend == "srr" else {}
    count = len(second.tokens)

    def per_token(name: str) -> float | None:
        return stats[name] / count if name in stats else None

    return Generation(
        backend=backend,
        text=tokenizer.decode(second.tokens, skip_special_tokens=True),
        tokens=second.tokens,
        prefill_s=second.prefill_s,
        decode_tokens_per_s=(count - 1) / second.decode_s if count > 1 else 0.0,
        compile_s=max(0.0, first.total_s - second.total_s),
        flops_per_token=per_token("flops_executed"),
        bytes_per_token=per_token("bytes_executed"),
        dense_flops_per_token=per_token("flops_dense"),
        dense_bytes_per_token=per_token("bytes_dense"),
        kl=_drift(model, inputs, second),
        stats=stats,
    )


def run_once(
    model: nn.Module, tokenizer: Any, prompt: str, options: Mapping[str, object] | None = None
) -> None:
    """Compile `model` in place with srr and run it: four tokens where it writes text, else one forward pass.

    Raises ModelError for a model without a tokenizer.
    """
    if _writes(model):
        inputs = encode(model, tokenizer, prompt, raw=False)
        compile_for(model, "srr", options)
        _timed(model, inputs, 4)
        return
    if not callable(tokenizer):
        raise ModelError(_NO_TOKENIZER)
    compile_for(model, "srr", options)
    with torch.no_grad():
        model(**tokenizer(prompt, return_tensors="pt"))


def encode(model: nn.Module, tokenizer: Any, prompt: str, *, raw: bool) -> dict[str, Tensor]:
    """{"input_ids", "attention_mask"}, int64 [1, S], of a prompt, in the chat template where there is one."""
    if not prompt.strip():
        raise OptionError("the prompt is empty; give some text to continue")
    if not _writes(model):
        raise ModelError(f"{type(model).__name__} writes no text; generate needs a model with generate()")
    if not hasattr(tokenizer, "decode"):
        raise ModelError(_NO_TOKENIZER)
    if getattr(tokenizer, "chat_template", None) and not raw:
        chat = [{"role": "user", "content": prompt}]
        found = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        found = tokenizer(prompt, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _writes(model: Any) -> bool:
    return hasattr(model, "can_generate") and bool(model.can_generate())


def compile_for(model: nn.Module, backend: str, options: Mapping[str, object] | None) -> None:
    """Compile `model` in place for one of `BACKENDS`; `options` are those of srr.

    Raises OptionError for an unknown backend, and for options of a backend that takes none.
    """
    if backend not in BACKENDS:
        raise OptionError(f"no backend {backend!r}; known: {', '.join(BACKENDS)}")
    if options and backend != "srr":
        raise OptionError(f"the backend {backend!r} takes no {', '.join(options)}; use --backend srr")
    if backend == "srr":
        model.compile(backend="srr", dynamic=False, options=dict(options or {}))
    elif backend != "eager":
        if backend == "inductor-frozen":
            # Given as options of torch.compile, these two are accepted and freeze nothing.
            import torch._inductor.config as inductor

            inductor.freezing = True
            inductor.max_autotune = True
        model.compile(backend="inductor", dynamic=False)


@dataclass(frozen=True)
class _Run:
    tokens: list[int]
    logits: Tensor  # [new tokens, V]
    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s


class _Clock:
    """A streamer for `generate` that only notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _timed(model: Any, inputs: dict[str, Tensor], max_new_tokens: int) -> _Run:
    clock = _Clock()
    with torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            cache_implementation="static",
            return_dict_in_generate=True,
            output_logits=True,
            streamer=clock,
        )
    prompt, first, last = clock.times[0], clock.times[1], clock.times[-1]
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return _Run(tokens, torch.cat(out.logits).float(), first - prompt, last - first)


def _drift(model: Any, inputs: dict[str, Tensor], run: _Run) -> float:
    """Mean KL(dense, run) in nats a token, the dense model reading what the run wrote."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([run.tokens])], dim=1)
    with torch.no_grad():
        # `forward` is the model as it was: compilation in place replaces only the call.
        dense = model.forward(input_ids=ids, use_cache=False).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
    log_dense, log_run = dense.float().log_softmax(-1), run.logits.log_softmax(-1)
    # A KL is not negative; rounding can be.
    return max(0.0, float((log_dense.exp() * (log_dense - log_run)).sum(-1).mean()))


def _stats(model: nn.Module, *, reset: bool = False) -> dict[str, Any]:
    import srrc

    found: dict[str, Any] = srrc.stats(model, reset=reset)
    return found
