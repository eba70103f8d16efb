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


def turn(source, source_column, target, target_row):
    n = count(source)
    target[target_row : target_row + n, :n] = source[:n, source_column : source_column + n].T


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


def product(a, b, c):
    """a b, as many rows and columns of it as c has; b may have rows behind those that a reads."""
    return a[: c.shape[0]] @ b[: a.shape[1], : c.shape[1]]


def set_product(a, b, c):
    c[...] = product(a, b, c)


def add_product(a, b, c):
    c[...] += product(a, b, c)


def install():
    """Put them in the place of the intrinsics. To be called before the kernels are imported."""
    from tinygrad_ds.kernels.cpu import arithmetic, lanes, tiles

    arithmetic.exp, arithmetic.largest = exp, largest
    for function in (load, store, turn, splat, larger, where_less, exp):
        setattr(lanes, function.__name__, function)
    tiles.set_product, tiles.add_product = set_product, add_product
