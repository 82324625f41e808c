"""Models in the format of transformers: from a directory, or from the hub by id."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srrc.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a hub id, `owner/name` or `name`."""
    return _HUB_ID.fullmatch(name) is not None


def load(name: str, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """Load the class that the model's own config names, and its tokenizer, else its processor, else None.

    Code that comes with a model is never run. Raises ModelError where transformers cannot load it.
    """
    transformers = import_transformers()
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(name)
            architecture = (config.architectures or ["AutoModel"])[0]
            model = getattr(transformers, architecture).from_pretrained(name, dtype=dtype or "auto")
    except (
        Exception
    ) as error:  # whatever a broken or missing file makes transformers, json or safetensors raise
        raise ModelError(f"cannot load {name!r}: {_first_line(error)}") from error
    return model.eval(), _reader(transformers, name) if _may_read(Path(name)) else None


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer or processor that a directory holds, None for none."""
    return _reader(import_transformers(), str(folder)) if _may_read(folder) else None


def import_transformers() -> Any:
    """The module transformers. Raises ModelError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ModelError("loading models needs transformers; pip install 'srrc[zoo]'") from error
    return transformers


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and notices, and the hub's, off standard error inside the block."""
    log = import_transformers().utils.logging
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _may_read(folder: Path) -> bool:
    """Whether a directory holds a tokenizer or processor: transformers makes up an empty one."""
    patterns = ("tokenizer*", "vocab*", "*processor*", "spiece*", "sentencepiece*")
    return not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in patterns)


def _reader(transformers: Any, name: str) -> Any:
    """The tokenizer, else the processor, else None: a model without either is still a model."""
    for kind in (transformers.AutoProcessor, transformers.AutoTokenizer, transformers.AutoImageProcessor):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError),
            quiet_transformers(),
        ):
            return kind.from_pretrained(name)
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
