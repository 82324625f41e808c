"""The GPU backend: gated ops as Triton kernels. Nothing here is imported where there is no Triton."""
