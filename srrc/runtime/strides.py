"""Tensors as a compiled graph expects them: of the strides it was made for, which `clone` and its like do not keep."""

import torch


def empty_as(tensor: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor with the shape, strides, gaps and all, dtype and device of `tensor`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
