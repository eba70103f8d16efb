"""Fused twins in numba, a file per family."""
