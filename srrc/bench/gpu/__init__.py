"""Kernels on a GPU: each checked, and measured against what a user would take instead. `python -m srrc.bench.gpu`."""
