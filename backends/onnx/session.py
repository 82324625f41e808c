"""Runs an ONNX file in ONNX Runtime, as a user's program would."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srrc.errors import ModelError

Feed = Mapping[str, Tensor]


def import_onnxruntime() -> Any:
    """The module onnxruntime. Raises ModelError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError("writing ONNX models needs onnxruntime; pip install 'srrc[onnx]'") from error
    return onnxruntime


class Session:
    """One file, loaded for the CPU with a fixed number of threads. Raises ModelError where it does not load."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self._path, self._threads = path, threads
        self._session: Any = None
        loaded = self.load()
        self.inputs = [each.name for each in loaded.get_inputs()]
        self.outputs = [each.name for each in loaded.get_outputs()]

    def load(self) -> Any:
        """Read the file again if its memory was given back."""
        if self._session is None:
            runtime = import_onnxruntime()
            options = runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
            options.log_severity_level = 3
            try:
                self._session = runtime.InferenceSession(
                    os.fspath(self._path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # its exceptions share no base but Exception
                first = str(error).strip().splitlines()[0]
                raise ModelError(f"ONNX Runtime does not load {Path(self._path).name}: {first}") from error
        return self._session

    def release(self) -> None:
        """Give its memory back until it is run again."""
        self._session = None

    def run(self, feed: Feed) -> dict[str, Tensor]:
        """Outputs by name. What the file does not take is left out of `feed`."""
        found = self.load().run(None, {name: _array(value) for name, value in feed.items()})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}


def _array(value: Tensor) -> "np.ndarray[Any, np.dtype[Any]]":
    return value.detach().contiguous().numpy()
