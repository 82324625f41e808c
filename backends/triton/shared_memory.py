"""How much shared memory a program may have: a launch that needs more fails, so that its configuration must ask."""

import torch

LEAST = 101_376
"""Bytes that every NVIDIA card since Ampere gives, as A10, L4, 3090, 4090 and 5090 do. An A100 gives 166,912, an H100
232,448."""


def shared_memory(device: torch.device) -> int:
    """Bytes that a program on `device` may have; `LEAST` where it is no card, or one that cannot be asked.

    Raises nothing and launches nothing, so that an op may call it while it is traced.
    """
    if device.type != "cuda":
        return LEAST
    try:
        card = torch.cuda.get_device_properties(device)
        # To torch, AMD's cards have no more than what programs have without asking for it.
        return int(getattr(card, "shared_memory_per_block_optin", None) or card.shared_memory_per_block)
    except Exception:  # noqa: BLE001 (a build without CUDA, a forked process, a driver: each raises its own)
        return LEAST
