"""Which history a compiled model learns into, and when it is written to its file."""

import atexit
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from srrc.control.history import History
from srrc.control.history_file import load, save
from srrc.errors import ProfileError, SrrWarning
from srrc.options import Options
from srrc.profile import Profile
from srrc.relevance.context import kept_basis
from srrc.runtime.stream import Stream

EVERY = 10.0
"""Seconds between two writings of one file; the last one is at exit."""


@dataclass
class _Kept:
    """A history with the file that it is kept in, if any."""

    history: History
    path: Path | None
    written: float

    def keep(self) -> None:
        """Write it, if it was not written just now."""
        if self.path is not None and monotonic() - self.written >= EVERY:
            self.write()

    def write(self) -> None:
        """Write it. Where that fails, warn once and leave it in memory."""
        if self.path is None:
            return
        self.written = monotonic()
        try:
            save(self.history, self.path)
        except ProfileError as error:
            warnings.warn(f"the history is kept in memory only: {error}", SrrWarning, stacklevel=2)
            self.path = None


_Model = tuple[dict[str, _Kept], dict[Options, Stream]]
"""A model's histories in memory by profile, and its streams by options."""

_lock = threading.Lock()
_files: dict[Path, _Kept] = {}
_models = WeakTensorKeyDictionary()
"""Parameter -> `_Model`."""


def stream_of(arguments: Sequence[torch.Tensor], options: Options, profile: Profile) -> Stream:
    """The stream of the model whose parameters are among `arguments`, compiled with `options`: one for all its graphs.

    Raises ProfileError where the history's file is of another profile, or no history.
    """
    with _lock:
        parameters = [each for each in arguments if isinstance(each, torch.nn.Parameter)]
        known = (_models.get(parameter) for parameter in parameters)  # type: ignore[no-untyped-call]
        model: _Model = next((each for each in known if each is not None), ({}, {}))
        for parameter in parameters:
            _models[parameter] = model
        histories, streams = model
        if options not in streams:
            kept = _open(options.history, profile.digest(), histories)
            basis = kept_basis(profile.vectors)
            streams[options] = Stream(kept.history, basis, options.context, kept.keep)
        return streams[options]


def _open(path: Path | None, digest: str, histories: dict[str, _Kept]) -> _Kept:
    if path is None:
        return histories.setdefault(digest, _Kept(History(digest), None, 0.0))
    path = path.resolve()
    kept = _files.get(path)
    if kept is None:
        history = load(path, digest)
        save(history, path)  # what cannot be written is said now, not after an hour of learning
        kept = _files[path] = _Kept(history, path, monotonic())
    elif kept.history.profile != digest:
        raise ProfileError(f"the history {path} is in use with another profile; give another file")
    return kept


@atexit.register
def _write_all() -> None:
    for kept in _files.values():
        kept.write()
