"""Softmax and log_softmax, fused, along the last axis.

Forward reads a row three times, after the first time from the cache: its largest entry, the sum of the
exponentials, the result. Backward reads it twice: the sum that all its entries share, and the gradient. The
result is all that is saved, as in the reference.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows


def softmax(x, *, axis=-1):
    return _along_rows(_softmax, x, axis)


def softmax_backward(saved, g):
    return _backward_along_rows(_softmax_backward, saved, g)


def log_softmax(x, *, axis=-1):
    return _along_rows(_log_softmax, x, axis)


def log_softmax_backward(saved, g):
    return _backward_along_rows(_log_softmax_backward, saved, g)


def _along_rows(function, x, axis):
    if not covered(x) or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    y = np.empty(x.shape, x.dtype)
    function(as_rows(x), as_rows(y))
    return y, (y,)


def _backward_along_rows(function, saved, g):
    grad_x = np.empty(g.shape, g.dtype)
    function(as_rows(g), as_rows(saved[0]), as_rows(grad_x))
    return (grad_x,)


@kernel("(T[:, ::1], T[:, ::1])")
def _softmax(x, y):
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for part in prange(PARTS):
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            top = largest(x[n])
            total = zero
            for i in range(x.shape[1]):
                e = exp(x[n, i] - top)
                y[n, i] = e
                total += e
            scale = one / total
            for i in range(x.shape[1]):
                y[n, i] *= scale


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])")
def _softmax_backward(g, y, grad_x):
    zero = g.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            mean = zero
            for i in range(g.shape[1]):
                mean += g[n, i] * y[n, i]
            for i in range(g.shape[1]):
                grad_x[n, i] = y[n, i] * (g[n, i] - mean)


@kernel("(T[:, ::1], T[:, ::1])")
def _log_softmax(x, y):
    zero = x.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            top = largest(x[n])
            total = zero
            for i in range(x.shape[1]):
                total += exp(x[n, i] - top)
            log_total = np.log(total)
            for i in range(x.shape[1]):
                y[n, i] = x[n, i] - top - log_total


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])")
def _log_softmax_backward(g, y, grad_x):
    zero = g.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            total = zero
            for i in range(g.shape[1]):
                total += g[n, i]
            for i in range(g.shape[1]):
                grad_x[n, i] = g[n, i] - exp(y[n, i]) * total
