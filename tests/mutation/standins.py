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


def as_whole(x):
    """The bits of a float."""
    return x.view({4: np.int32, 8: np.int64}[x.itemsize])


def as_real(bits):
    """The float of some bits."""
    return bits.view({4: np.float32, 8: np.float64}[bits.itemsize])


def install():
    """Put them in the place of the intrinsics. To be called before the kernels are imported."""
    from tinygrad_ds.kernels.cpu import arithmetic

    arithmetic.as_whole, arithmetic.as_real = as_whole, as_real
    arithmetic.exp, arithmetic.largest = exp, largest
    from tinygrad_ds.kernels.cpu import lanes, rounding, shape, tiles

    shape.PARALLEL_FROM = 1  # so that joining and cutting serve small arrays too

    for function in (load, store, turn, splat, larger, where_less, exp):
        setattr(lanes, function.__name__, function)
    tiles.set_product, tiles.add_product = set_product, add_product
    rounding.shifted_down, rounding.shifted_up = np.right_shift, np.left_shift
    rounding.over = np.divide
    for name in ("nearest", "at_random", "encoded", "magnitude", "power_above", "power_below"):
        setattr(rounding, name, made_for_its_dtype(getattr(rounding, f"_{name}_for")))
    rounding.decoded = lambda code, form, like: rounding._decoded_for(like.dtype)(code, form, like)
    rounding.hashed = rounding._hashed(None, None)


def made_for_its_dtype(make):
    """A function that numba would make for the dtype of its first argument."""
    return lambda x, *others: make(x.dtype)(x, *others)
