"""Tells whether a profile was made for these weights: a few values of each parameter, compared exactly.

Values are kept rather than a hash of them, because a hash does not survive a cast: a profile made in float32
must fit the same model in bfloat16. Two values are equal where they are equal after rounding to the coarser
of the two dtypes; casting rounds to nearest, so a cast changes nothing and an optimiser's step changes
something. Only sampled
elements are looked at: an edit that touches none of them is not seen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES = 64
"""Elements looked at per parameter, evenly spread over it."""

_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Bits of the significand; a dtype that is not here (an integer, a quantised one) is compared as it
stands."""


@dataclass(frozen=True)
class Sample:
    """What is kept of one parameter. values: float32 [at most SAMPLES], the elements at `_positions`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: Tensor


def take(parameters: Iterable[tuple[str, Tensor]]) -> tuple[Sample, ...]:
    """Sample each parameter, whatever its dtype, device and strides. Reads 64 elements of each."""
    return tuple(
        Sample(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), _values(tensor))
        for name, tensor in parameters
    )


def difference(samples: Sequence[Sample], parameters: Mapping[str, Tensor]) -> str | None:
    """What sets `parameters` (some or all of a model's, by name) apart from what was sampled; None for
    nothing.
    """
    known = {sample.name: sample for sample in samples}
    common = [name for name in parameters if name in known]
    if not common:
        return "no parameter of this model is in it"
    for name in common:
        sample, tensor = known[name], parameters[name]
        if tuple(tensor.shape) != sample.shape:
            return f"{name} is {tuple(tensor.shape)} here and {sample.shape} there"
        if not _equal(sample, tensor):
            return f"the values of {name} differ"
    return None


def _values(tensor: Tensor) -> Tensor:
    """Elements at evenly spread positions of the logical (row-major) order, in float32."""
    count = math.prod(tensor.shape)
    if count == 0:
        return torch.zeros(0, dtype=torch.float32)
    steps = min(SAMPLES, count)
    flat = torch.tensor([index * count // steps for index in range(steps)])
    position = torch.unravel_index(flat, tensor.shape) if tensor.dim() else ()
    picked = tensor.detach()[tuple(index.to(tensor.device) for index in position)]
    return picked.reshape(-1).to("cpu", torch.float32)


def _equal(sample: Sample, tensor: Tensor) -> bool:
    there = getattr(torch, sample.dtype)
    coarser = min(there, tensor.dtype, key=lambda dtype: _DIGITS.get(dtype, 64))
    ours, theirs = _values(tensor), sample.values
    if coarser in _DIGITS:
        ours, theirs = ours.to(coarser), theirs.to(coarser)
    return torch.equal(torch.nan_to_num(ours.float()), torch.nan_to_num(theirs.float()))
