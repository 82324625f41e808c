"""Measuring: one generation, a demo of the backends, the bench of every variant, and that of the kernels."""
