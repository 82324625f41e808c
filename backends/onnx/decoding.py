"""Greedy decoding with a decoder's flat interface, whoever computes it: eager torch or ONNX Runtime."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from srrc.backends.onnx.interfaces.base import empty_past

Step = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Inputs by name -> outputs by name."""


def first_inputs(example: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs that read `tokens` (int64 [B, S]) into an empty cache."""
    batch, length = tokens.shape
    found = {"input_ids": tokens, "attention_mask": torch.ones(batch, length, dtype=torch.int64)}
    if "position_ids" in example:
        found["position_ids"] = torch.arange(length).expand(batch, length).contiguous()
    return found | empty_past(example, batch)


def next_inputs(
    inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], token: Tensor
) -> dict[str, Tensor]:
    """The inputs that read `token` (int64 [B]) after a call that took `inputs` and gave `outputs`."""
    mask = inputs["attention_mask"]
    found = {
        "input_ids": token[:, None],
        "attention_mask": torch.cat((mask, torch.ones_like(mask[:, :1])), 1),
    }
    if "position_ids" in inputs:
        found["position_ids"] = inputs["position_ids"][:, -1:] + 1
    past = {
        name: name.replace("past_key_values", "present")
        for name in inputs
        if name.startswith("past_key_values")
    }
    return found | {name: outputs[present] for name, present in past.items()}


def greedy(step: Step, example: Mapping[str, Tensor], prompt: Sequence[int], new_tokens: int) -> list[int]:
    """The tokens that follow `prompt`, each the likeliest."""
    inputs = first_inputs(example, torch.tensor([list(prompt)]))
    written: list[int] = []
    while True:
        outputs = step(inputs)
        token = outputs["logits"][:, -1].argmax(-1)
        written.append(int(token))
        if len(written) == new_tokens:
            return written
        inputs = next_inputs(inputs, outputs, token)
