"""srrc, the Semantic Relevance Router compiler: `torch.compile(model, backend="srr")`.

Importing srrc imports nothing heavy: each name below is loaded when it is first used.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srrc import models_zoo as models_zoo
    from srrc.calibration import calibrate as calibrate
    from srrc.optimization.optimize import optimize as optimize
    from srrc.profile import Profile as Profile
    from srrc.report import explain as explain
    from srrc.report import set_budget as set_budget
    from srrc.report import set_context as set_context
    from srrc.report import stats as stats
    from srrc.training.train import train as train

__version__ = "0.1.0.dev0"

if not Path(__file__).with_name("passes").is_dir():
    # A checkout, where the folders beside this one are packages of it, as pyproject.toml says. Found by where this file
    # is, and not by what is installed: that may be another checkout.
    __path__.append(str(Path(__file__).parents[1]))

_PUBLIC = {
    "Profile": "srrc.profile",
    "calibrate": "srrc.calibration",
    "explain": "srrc.report",
    "optimize": "srrc.optimization.optimize",
    "set_budget": "srrc.report",
    "set_context": "srrc.report",
    "stats": "srrc.report",
    "train": "srrc.training.train",
}

__all__ = [
    "Profile",
    "calibrate",
    "explain",
    "models_zoo",
    "optimize",
    "set_budget",
    "set_context",
    "stats",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "models_zoo":
        return importlib.import_module("srrc.models_zoo")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'srrc' has no attribute {name!r}")
