"""Passes: FX graph to FX graph, one a file; `srrc.compiler` lists them in order."""
