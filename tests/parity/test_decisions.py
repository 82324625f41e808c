"""A learned profile in another process: the same decisions, bit for bit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import srrc
from srrc.models_zoo import families
from srrc.profile import Profile

TEXT = " ".join(f"the {word} of {number}" for number in range(200) for word in ("cost", "gate", "plan"))

RUN = """
import hashlib
import torch
import srrc
import srrc.compiler
from srrc.models_zoo import families

srrc.compiler.gate_times = lambda calls: {}


def decisions(profile):
    torch._dynamo.reset()
    model = families.tiny("llama").model
    model.compile(backend="srr", options={"profile": profile, "budget": 0.7, "feedback": 0.0})
    seen = hashlib.sha256()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(8):
            ids = torch.randint(4, 100, (1, 1), generator=draw)
            seen.update(model(ids).logits.numpy().tobytes())
    return seen.hexdigest() + " " + repr(sorted(srrc.stats(model)["gates"].items()))
"""


def learned(letters: Any) -> Profile:
    """A profile whose gates weigh tokens, as training leaves them."""
    torch._dynamo.reset()
    model: nn.Module = families.tiny("llama").model
    plain = srrc.calibrate(model, letters, TEXT, windows=4, length=24, progress=False)
    width = model.config.hidden_size  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(0)
    vectors = {
        f"{gate}/emphasis": torch.randn(int(width) + 1, generator=draw)  # type: ignore[arg-type]
        for gate in plain.gates
        if gate.startswith("neuron:")
    }
    return srrc.calibrate(model, letters, TEXT, windows=4, length=24, progress=False, learned={**vectors})


def test_decisions_are_the_same_in_another_process(letters: Any, tmp_path: Path, monkeypatch: Any) -> None:
    profile = learned(letters)
    assert any(name.endswith("/emphasis") for name in profile.vectors)
    profile.save(tmp_path / "learned.srr")
    namespace: dict[str, Any] = {}
    monkeypatch.setattr("srrc.compiler.gate_times", lambda calls: {})
    exec(RUN, namespace)
    here = namespace["decisions"](profile)
    script = f"{RUN}\nprint(decisions({str(tmp_path / 'learned.srr')!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == here
    assert any(0 < gate["taken"] < gate["offered"] for gate in srrc_gates(here).values())


def srrc_gates(told: str) -> dict[str, dict[str, int]]:
    """The counts of `decisions`."""
    import ast

    return dict(ast.literal_eval(told.split(" ", 1)[1]))
