"""Backends: an FX graph in, something that runs out."""
