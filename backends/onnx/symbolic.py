"""Calls that torch's exporter writes as ONNX nodes of any domain."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def symbolic(
    name: str,
    inputs: Sequence[Tensor | None],
    shape: Sequence[int | torch.SymInt],
    dtype: torch.dtype,
    attributes: Mapping[str, int | float | str] | None = None,
) -> Tensor:
    """A call that exports as the node `name` ("domain::Operator") with one result. It computes nothing here."""
    made: Tensor = torch.onnx.ops.symbolic(
        name, inputs, dict(attributes or {}), dtype=dtype, shape=shape, version=1
    )
    return made
