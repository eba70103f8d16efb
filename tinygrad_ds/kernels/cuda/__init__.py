"""Fused twins in CUDA C++ for CuPy, a file of kernels and a file of launches for each family."""
