"""Kernels as operators of the namespace `srr_triton`, which Inductor sees through: each is a launcher of `kernels/`."""
