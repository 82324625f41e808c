"""The CPU backend: C++ kernels built on first use, and the pass that puts them in."""
