"""Whether the kernels run where a graph is: asked before anything imports Triton."""

import importlib.util

import torch

from srrc.reasons import Reason, Refusal

CAPABILITY = (8, 0)
"""The oldest NVIDIA cards that the kernels are compiled for: before them there is no bf16, nor a copy that does not
wait."""


def unfit(device: torch.device) -> Refusal | None:
    """Why no kernel runs on a CUDA device (which AMD's are to torch, too), or None."""
    if importlib.util.find_spec("triton") is None:
        return Refusal("every gate", "graph", Reason.NO_TRITON, "pip install triton")
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        needed = f"{major}.{minor}, where {CAPABILITY[0]}.{CAPABILITY[1]} is needed"
        return Refusal("every gate", "graph", Reason.OLD_CARD, f"its compute capability is {needed}")
    return None
