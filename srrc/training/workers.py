"""Several processes that train together, as `torchrun` or `accelerate launch` start them: own batches, one step.

`accelerate` finds out how many there are and how they talk. Alone, nothing of it is imported.
"""

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Workers:
    """number: of this process, 0 first; count: of all."""

    def __init__(self) -> None:
        self.number, self.count = 0, 1
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator()
            self.number, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Make every process's gradients the mean of all."""
        if self._accelerator is None:
            return
        for parameter in parameters:
            parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
