"""Every family as ONNX: valid, eager's values with open gates, and torch's own with any decision of its gates."""

from typing import Any

import pytest
import torch

from srrc.backends.onnx.decoding import greedy
from srrc.backends.onnx.interfaces.base import BATCH, ENCODER_SEQUENCE, PAST, SEQUENCE
from srrc.backends.onnx.interfaces.draw import draw
from srrc.backends.onnx.session import Session
from srrc.models_zoo import families
from srrc.optimization.checks import check_file, compare_outputs, eager

QUICK = {"llama", "gpt2", "falcon", "mixtral", "bert", "t5", "vit", "resnet", "mamba"}
"""One of each kind, tested every time. The others share their parts with these: `make test-all` has them, too."""


def marked(names: list[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


UNGATED = {"resnet"}
"""A branch of convolutions has no rows that are tokens."""
NAMES = marked(families.names())
GATED = marked([name for name in families.names() if name not in UNGATED | {"mamba"}])
"""A state space's scan is not looked into: it has a gate on its head alone."""
DECODERS = marked(
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt-neox", "opt", "falcon"]
)


ROUNDED = {"mixtral": 0.25, "clip": 0.5}
"""Share of numbers that rounding may move, where it is more than elsewhere: CLIP gives four."""

MLPS = marked([name for name in families.names() if name not in UNGATED | {"mamba", "mixtral"}])
"""With an MLP that every token goes through."""


@pytest.mark.parametrize("name", NAMES)
def test_open_gates_give_eagers_values_and_those_of_no_gates(name: str, export: Any) -> None:
    for file in export(name, "out"):
        check_file(file.path)
        check_file(file.dense)
        assert (name in UNGATED) == (not file.gates)
        dense = Session(file.dense)
        assert compare_outputs(file.interface, dense).keys() == set(file.interface.outputs)
        for sizes in (
            {BATCH: 1, SEQUENCE: 1, PAST: 0},
            {BATCH: 2, SEQUENCE: 6, PAST: 3, ENCODER_SEQUENCE: 6},
        ):
            inputs = draw(file.interface, sizes, 1)
            expected, actual = dense.run(inputs), file.session.run(inputs)
            for output, value in expected.items():
                # Around an `If` ONNX Runtime fuses less: a sum and the norm after it round once more.
                torch.testing.assert_close(
                    actual[output], value, rtol=1e-5, atol=2e-6, msg=lambda m, n=output: f"{n}: {m}"
                )


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0, 1e9])
def test_mixed_decisions_are_those_of_the_same_graph_in_torch(
    name: str, threshold: float, export: Any
) -> None:
    for file in export(name, "out"):
        limits = torch.tensor([threshold if gate.startswith("residual") else -1.0 for gate in file.gates])
        inputs = draw(file.interface, {BATCH: 2, SEQUENCE: 9, PAST: 4, ENCODER_SEQUENCE: 9}, 2)
        expected, actual = file.reference(inputs, limits), file.run(inputs, limits)
        opened = file.run(inputs, torch.full_like(limits, -1.0))
        moved = 0.0
        for output, value in expected.items():
            largest = value.abs().max().clamp(min=1e-6)
            assert (actual[output] - value).abs().max() <= 1e-4 * largest, output
            moved = max(moved, float((opened[output] - value).abs().max() / largest))
        if threshold == 1e9:
            assert moved > 1e-3, "leaving out every branch changed nothing"


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_write_eagers_tokens(name: str, export: Any) -> None:
    (file,) = export(name, "out")
    prompt = [5, 99, 17, 4, 31]
    theirs = greedy(lambda inputs: eager(file.interface, inputs), file.interface.example, prompt, 12)
    assert greedy(file.session.run, file.interface.example, prompt, 12) == theirs


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.5, 1e9])
def test_coarse_weights_stand_in_as_in_torch(name: str, threshold: float, export: Any) -> None:
    for file in export(name, "coarse"):
        limits = torch.full((len(file.gates),), threshold)
        inputs = draw(file.interface, {BATCH: 2, SEQUENCE: 9, PAST: 4, ENCODER_SEQUENCE: 9}, 3)
        expected, actual = file.reference(inputs, limits), file.run(inputs, limits)
        for output, value in expected.items():
            largest = value.abs().max().clamp(min=1e-6)
            off = (actual[output] - value).abs() / largest
            # Where a number lies between two of 8 bits, it may be rounded either way: one token, and those that see it.
            assert off.max() <= (4e-2 if name == "gemma3" else 2e-2), output
            assert (off > 1e-4).float().mean() <= ROUNDED.get(name, 0.2), output


@pytest.mark.parametrize("name", MLPS)
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.0, 2.0, 1e9])
def test_blocks_of_neurons_are_left_out_as_in_torch(name: str, threshold: float, export: Any) -> None:
    for file in export(name, "blocks"):
        assert file.gates
        check_file(file.path)
        limits = torch.full((len(file.gates),), threshold)
        inputs = draw(file.interface, {BATCH: 2, SEQUENCE: 9, PAST: 4, ENCODER_SEQUENCE: 9}, 6)
        expected, actual = file.reference(inputs, limits), file.run(inputs, limits)
        dense = Session(file.dense).run(inputs)
        moved = 0.0
        for output, value in expected.items():
            largest = value.abs().max().clamp(min=1e-6)
            assert (actual[output] - value).abs().max() <= 1e-4 * largest, output
            moved = max(moved, float((dense[output] - value).abs().max() / largest))
        assert (moved > 1e-3) == (threshold >= 0.5), (
            "gates that are closed change something, open ones nothing"
        )


def test_a_decoder_decides_alike_in_one_call_and_token_by_token(export: Any) -> None:
    (file,) = export("llama", "out")
    limits = torch.tensor([1.0 if gate.startswith("residual") else -1.0 for gate in file.gates])
    whole = draw(file.interface, {BATCH: 1, SEQUENCE: 12, PAST: 0}, 4)
    at_once = file.run(whole, limits)
    found, outputs = [], {}
    for at in range(12):
        step = {name: value for name, value in whole.items() if not name.startswith("past")}
        step = {name: value[:, at : at + 1] for name, value in step.items()}
        step["attention_mask"] = torch.ones(1, at + 1, dtype=torch.int64)
        for name in whole:
            if name.startswith("past"):
                step[name] = outputs[name.replace("past_key_values", "present")] if at else whole[name]
        outputs = file.run(step, limits)
        found.append(outputs["logits"])
    torch.testing.assert_close(torch.cat(found, 1), at_once["logits"], rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_decide_for_themselves(export: Any) -> None:
    (file,) = export("llama", "out")
    limits = torch.tensor([1.0 if gate.startswith("residual") else -1.0 for gate in file.gates])
    both = draw(file.interface, {BATCH: 2, SEQUENCE: 9, PAST: 0}, 5)
    together = file.run(both, limits)["logits"]
    for row in range(2):
        alone = file.run({name: value[row : row + 1] for name, value in both.items()}, limits)["logits"]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
