"""Whether a file is what it should be: valid ONNX, eager's values and tokens where its gates are open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srrc.backends.onnx.decoding import greedy
from srrc.backends.onnx.interfaces.base import BATCH, ENCODER_SEQUENCE, PAST, SEQUENCE, Interface
from srrc.backends.onnx.interfaces.draw import draw
from srrc.backends.onnx.session import Session
from srrc.errors import ModelError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference from eager in a floating-point output, as a share of its largest value. In float32 eager itself is
this far from float64 on ill-conditioned inputs; exported models that were wired wrongly are off by 0.1 and more.
"""

SIZES: Sequence[Mapping[str, int]] = (
    {BATCH: 1, SEQUENCE: 1, PAST: 0, ENCODER_SEQUENCE: 4},
    {BATCH: 1, SEQUENCE: 1, PAST: 9, ENCODER_SEQUENCE: 6},
    {BATCH: 1, SEQUENCE: 17, PAST: 0, ENCODER_SEQUENCE: 17},
    {BATCH: 3, SEQUENCE: 5, PAST: 4, ENCODER_SEQUENCE: 5},
)
"""Sizes at which outputs are compared: a first token, a later one, a prompt, and a batch that goes on."""


@dataclass(frozen=True)
class Parity:
    """How a file with open gates compares with eager.

    worst:  output name -> largest difference, as a share of the output's largest value
    tokens: prompts whose greedy tokens were compared, and how many were equal to the last; None where none were
    """

    worst: Mapping[str, float]
    tokens: tuple[int, int] | None


def check_file(path: Path) -> None:
    """Run ONNX's own checker and full shape inference on a file, subgraphs included.

    Raises ModelError with its first complaint.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        onnx.shape_inference.infer_shapes_path(
            str(path), str(path.with_suffix(".inferred")), strict_mode=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{path.name} is not valid ONNX: {str(error).strip().splitlines()[0]}") from error
    finally:
        path.with_suffix(".inferred").unlink(missing_ok=True)


def eager(interface: Interface, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that the user's model computes itself."""
    with torch.no_grad():
        return dict(zip(interface.outputs, interface.module(*inputs.values()), strict=True))


def compare_outputs(
    interface: Interface, session: Session, extra: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Largest difference from eager in each output over `SIZES`, as a share of its largest value.

    extra: inputs of the file that eager does not have
    Raises ModelError where an output has another shape, or is further off than `TOLERANCE`.
    """
    worst: dict[str, float] = {}
    for seed, sizes in enumerate(SIZES):
        inputs = draw(interface, sizes, seed)
        expected, actual = eager(interface, inputs), session.run({**inputs, **(extra or {})})
        for name, reference in expected.items():
            off = _apart(name, actual[name], reference)
            limit = TOLERANCE.get(reference.dtype, 0.0)
            if not off <= limit:
                raise ModelError(
                    f"the exported {name} is off eager's by {off:.2g} of its largest value (allowed: {limit:g}) "
                    f"at {', '.join(f'{axis} {size}' for axis, size in sizes.items())}"
                )
            worst[name] = max(worst.get(name, 0.0), off)
    return worst


def compare_tokens(
    interface: Interface,
    session: Session,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    extra: Mapping[str, Tensor] | None = None,
) -> tuple[int, int]:
    """(prompts, how many of them a decoder continues with eager's very tokens)."""
    equal = 0

    def step(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return session.run({**inputs, **(extra or {})})

    for prompt in prompts:
        theirs = greedy(lambda inputs: eager(interface, inputs), interface.example, prompt, new_tokens)
        equal += greedy(step, interface.example, prompt, new_tokens) == theirs
    return len(prompts), equal


def _apart(name: str, actual: Tensor, reference: Tensor) -> float:
    if actual.shape != reference.shape:
        raise ModelError(
            f"the exported {name} has shape {tuple(actual.shape)}, eager's {tuple(reference.shape)}"
        )
    if not reference.numel():
        return 0.0
    largest = reference.abs().max().double().clamp(min=1e-12)
    return float((actual.double() - reference.double()).abs().max() / largest)
