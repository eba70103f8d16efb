"""Products of a matrix with one vector or a few, and the norm of a vector: what decoding kernels are made of.

A row of the matrix after the other: memory is read fastest that way, and reading is what takes the time.
Inner loops count from 0: with an index that might be negative numba does not vectorise them.
"""

import numpy as np
from numba import njit

from tinygrad_ds.kernels.cpu.common import FASTMATH


@njit(fastmath=FASTMATH)
def times(weight, x, y):
    """y = W x, row after row of W, as memory is read fastest."""
    for o in range(weight.shape[0]):
        total = x.dtype.type(0)
        for i in range(x.shape[0]):
            total += weight[o, i] * x[i]
        y[o] = total


@njit(fastmath=FASTMATH)
def times_rows(weight, start, stop, x, rows, y):
    """y[b, o] = W[o] . x[b] for the first `rows` rows and o from start to stop: W[o] is read once for all."""
    for o in range(start, stop):
        for b in range(rows):
            total = x.dtype.type(0)
            for i in range(x.shape[1]):
                total += weight[o, i] * x[b, i]
            y[b, o] = total


@njit(fastmath=FASTMATH)
def normalise(x, weight, eps, y):
    """y = RMSNorm(x)."""
    real = x.dtype.type
    squares = real(0)
    for i in range(x.shape[0]):
        squares += x[i] * x[i]
    scale = real(1) / np.sqrt(squares / real(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        y[i] = x[i] * scale * weight[i]
