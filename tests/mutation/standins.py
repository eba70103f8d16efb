"""Kernels as plain Python: what LLVM code does in them, done by NumPy.

Numba's own functions become plain ones under NUMBA_DISABLE_JIT=1. The rest is a handful of intrinsics, which
have no Python to run; they are replaced here before any kernel is imported.
"""

import numpy as np

BYTES = 64


def count(array):
    """How many numbers fill the lanes."""
    return BYTES // array.itemsize


def load(array, row, column):
    return array[row, column : column + count(array)].copy()


def store(lanes, array, row, column):
    array[row, column : column + count(array)] = lanes


def splat(number, array):
    return np.full(count(array), number, array.dtype)


def larger(a, b):
    return np.where(a > b, a, b)


def where_less(a, b, then, otherwise):
    return np.where(a < b, then, otherwise)


def exp(x):
    return np.exp(x)


def largest(row):
    return np.nanmax(row) if not np.isnan(row).all() else row.dtype.type(np.nan)


def set_product(a, b, c):
    c[...] = a @ b


def add_product(a, b, c):
    c[...] += a @ b


def install():
    """Put them in the place of the intrinsics. To be called before the kernels are imported."""
    from tinygrad_ds.kernels.cpu import arithmetic, lanes

    arithmetic.exp, arithmetic.largest = exp, largest
    for function in (load, store, splat, larger, where_less, exp, set_product, add_product):
        setattr(lanes, function.__name__, function)
