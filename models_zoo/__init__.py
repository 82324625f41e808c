"""Real models by name, tiny models of every family, and real text to run them on."""

from srrc.models_zoo.registry import load, names

__all__ = ["load", "names"]
